"""Names, lists and tars that are odd but not wrong: every pair of them is kept, or counted with its reason."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from data_pipeline.errors import BadTokenizer
from data_pipeline.pairs.recipe import PairCorpusConfig, PairFilterConfig
from data_pipeline.recipe import TokenizerConfig
from data_pipeline.tokenizer_training import LEAST_VOCABULARY, train
from tests.data_pipeline.pair_recipes import captions_of, dropped, pair_recipe, run
from tests.data_pipeline.pictures import encoded, scene, tar_members, write_folder, write_tar
from training.sections import parse_section

TOO_LONG = "caption: longer than the format holds"


def test_names_that_are_not_utf8_are_read_like_others(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", range(3))
    for kind in ("jpg", "txt"):
        os.rename(folder / f"001.{kind}", os.fsencode(folder) + b"/latin\xe9." + kind.encode())
    tar = write_tar(tmp_path / "one.tar", tar_members(range(10, 12)))
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/latin\xe9.tar")
    os.rename(tar, odd)
    corpora = [PairCorpusConfig("folder", [str(folder)]), PairCorpusConfig("tar", [odd])]
    result = run(pair_recipe(tmp_path / "out", *corpora))
    assert sorted(captions_of(tmp_path / "out" / "folder")) == sorted(scene(seed)[1] for seed in range(3))
    assert captions_of(tmp_path / "out" / "tar") == [scene(seed)[1] for seed in (10, 11)]
    assert dropped(result) == dropped(result, 1) == {}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_row_with_a_caption_of_any_length_costs_no_other_row(tmp_path: Path, kind: str) -> None:
    write_folder(tmp_path / "local", range(3))
    captions = [scene(0)[1], "word " * 40_000, scene(2)[1]]
    rows = [(f"local/{n:03d}.jpg", caption) for n, caption in enumerate(captions)]
    if kind == "csv":
        (tmp_path / "list.csv").write_text("url,caption\n" + "".join(f'{url},"{text}"\n' for url, text in rows))
    else:
        lines = (json.dumps({"url": url, "caption": text}) for url, text in rows)
        (tmp_path / "list.jsonl").write_text("\n".join(lines))
    result = run(pair_recipe(tmp_path / "out", PairCorpusConfig("c", [str(tmp_path / f"list.{kind}")])))
    assert captions_of(tmp_path / "out" / "c") == [scene(0)[1], scene(2)[1]]
    assert dropped(result) == {TOO_LONG: 1}


def test_a_caption_that_is_too_long_is_told_and_never_cut(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", range(3))
    (folder / "000.txt").write_bytes(b"a dog " + b" " * (1 << 16) + b"and a cat")  # short, cut behind the dog
    (folder / "001.txt").write_bytes(b"\xef\xbb\xbf" + b"a dog " * 20_000)
    members = [*tar_members(range(10, 11)), ("x.jpg", encoded(scene(11)[0])), ("x.txt", b"word " * 20_000)]
    members.append(("x.json", b'{"caption": "a text in its stead"}'))
    tar = write_tar(tmp_path / "one.tar", members)
    corpora = [PairCorpusConfig("folder", [str(folder)]), PairCorpusConfig("tar", [str(tar)])]
    result = run(pair_recipe(tmp_path / "out", *corpora))
    assert (dropped(result), dropped(result, 1)) == ({TOO_LONG: 2}, {TOO_LONG: 1})


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_a_list_whose_first_objects_lack_the_caption_is_read(tmp_path: Path, kind: str) -> None:
    write_folder(tmp_path / "local", range(4))
    rows = [{"url": f"local/{n:03d}.jpg", **({"caption": scene(n)[1]} if n > 1 else {})} for n in range(4)]
    content = json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows))
    (tmp_path / f"list.{kind}").write_text(content)
    result = run(pair_recipe(tmp_path / "out", PairCorpusConfig("c", [str(tmp_path / f"list.{kind}")])))
    assert captions_of(tmp_path / "out" / "c") == [scene(2)[1], scene(3)[1]]
    assert dropped(result) == {"caption: missing": 2}


def test_files_about_a_tree_of_classes_are_no_lists(tmp_path: Path) -> None:
    for seed in range(3):
        (tmp_path / "tree" / "dog").mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / "dog" / f"{seed}.jpg").write_bytes(encoded(scene(seed)[0]))
    (tmp_path / "tree" / "classes.json").write_text('{"dog": 0}')
    (tmp_path / "tree" / "dog" / "boxes.csv").write_text("x,y\n1,2\n")
    run(
        pair_recipe(
            tmp_path / "out", PairCorpusConfig("c", [str(tmp_path / "tree")], caption="folder", template="a {}")
        )
    )
    assert captions_of(tmp_path / "out" / "c") == ["a dog"] * 3


def test_one_class_only_is_a_corpus_like_any_other(tmp_path: Path) -> None:
    for seed in range(5):
        (tmp_path / "dog").mkdir(exist_ok=True)
        (tmp_path / "dog" / f"{seed}.png").write_bytes(encoded(scene(seed)[0], "PNG"))
    corpus = PairCorpusConfig("dogs", [str(tmp_path / "dog")], caption="folder", template="a {}")
    run(pair_recipe(tmp_path / "out", corpus))
    assert captions_of(tmp_path / "out" / "dogs") == ["a dog"] * 5


def test_a_picture_that_a_list_beside_it_names_is_found_once(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", range(5))
    for seed in range(4):
        (folder / f"{seed:03d}.txt").unlink()
    rows = "".join(f'./../photos/{seed:03d}.jpg,"{scene(seed)[1]}"\n' for seed in range(3))
    (folder / "captions.csv").write_text("url,caption\n" + rows)
    result = run(pair_recipe(tmp_path / "out", PairCorpusConfig("c", [str(folder)])))
    assert captions_of(tmp_path / "out" / "c") == [scene(seed)[1] for seed in (4, 0, 1, 2)]
    assert dropped(result) == {"caption: missing": 1}
    assert result.corpora[0].tally.kept["found"][0] == 5


def test_what_has_the_name_of_another_in_a_tar_is_counted(tmp_path: Path) -> None:
    pictures = [encoded(scene(seed)[0]) for seed in range(4)]
    members = [
        ("d.jpg", pictures[0]), ("d.txt", b"the first of two"), ("d.jpg", pictures[1]), ("d.txt", b"the second of two"),
        ("two.jpg", pictures[2]), ("two.png", encoded(scene(5)[0], "PNG")), ("two.txt", b"a picture of two kinds"),
        ("e.jpg", pictures[3]), ("e.txt", b"the last of all"),
    ]  # fmt: skip
    tar = write_tar(tmp_path / "one.tar", members)
    result = run(pair_recipe(tmp_path / "out", PairCorpusConfig("c", [str(tar)])))
    assert captions_of(tmp_path / "out" / "c") == ["the first of two", "a picture of two kinds", "the last of all"]
    assert dropped(result) == {"read: another picture or caption of the same name": 2}
    assert result.corpora[0].tally.kept["found"][0] == 5


def test_a_vocabulary_of_characters_that_is_too_small_is_told_with_the_least() -> None:
    with pytest.raises(BadTokenizer, match=f"vocab_size 100 is too small: at least {LEAST_VOCABULARY}"):
        train(["a few words"], TokenizerConfig(type="char", vocab_size=100))
    assert train(["a few words"], TokenizerConfig(type="char", vocab_size=LEAST_VOCABULARY))


def test_languages_that_are_named_alone_keep_the_bounds_for_captions() -> None:
    """A document's bound of 100 characters would let nearly every caption pass."""
    filters = parse_section(PairFilterConfig, {"language": {"keep": ["en"]}}, "filters")
    assert filters.language.keep == ["en"]
    assert (filters.language.min_characters, filters.language.max_distance) == (25, 1500)
    assert PairFilterConfig().language.keep == []
