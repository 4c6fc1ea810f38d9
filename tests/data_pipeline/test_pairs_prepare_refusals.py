"""What prepare refuses of pairs, in one line that names what to mend."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from data_pipeline.errors import BadConfig, BadCorpus, BadTokenizer, UserError
from data_pipeline.pairs.prepare import prepare_pairs
from data_pipeline.pairs.recipe import (
    CaptionLanguageConfig,
    CaptionTokenizerConfig,
    PairCorpusConfig,
    PairDedupConfig,
    PairFilterConfig,
    PairPrepareConfig,
    ResizeConfig,
)
from tests.data_pipeline.pair_recipes import captions_of, dropped, pair_recipe, run
from tests.data_pipeline.pictures import scene, tar_members, write_folder, write_tar

REPOSITORY = Path(__file__).parents[2]
Case = tuple[PairPrepareConfig, type[UserError], str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources with one thing wrong in each."""
    root = tmp_path_factory.mktemp("wrong")
    write_folder(root / "good", range(4))
    for path in write_folder(root / "bare", range(2)).glob("*.txt"):
        path.unlink()
    for path in write_folder(root / "empty", range(2)).glob("*.txt"):
        path.write_text("\n")
    (root / "words").mkdir()
    (root / "words" / "a.md").write_text("no picture")
    (root / "paths.csv").write_text("url,caption\nnone/a.jpg,a picture that is not there\nb.jpg,nor is this one\n")
    (root / "columns.csv").write_text("link,text,n\na,b,1\n")
    (root / "columns.jsonl").write_text('{"link": "a", "text": "b"}\n')
    (root / "header.csv").write_text("url,caption\n")
    (root / "nothing.csv").write_text("")
    (root / "nothing.jsonl").write_text("\n\n")
    (root / "broken.json").write_text('[{"url": "a", "caption": "b"}')
    (root / "broken.parquet").write_bytes(b"PAR1 and no more")
    (root / "late.csv").write_text(
        'url,caption\ngood/000.jpg,a caption of some length\ngood/001.jpg,"never closed\ngood/002.jpg,x\n'
    )
    texts = {"url": ["a.jpg", "b.jpg"], "caption": [["a dog", "a hound"], ["a cat"]]}
    pyarrow.parquet.write_table(pyarrow.table(texts), root / "texts.parquet")
    (root / "marked.csv").write_text("url,caption\na.jpg,a dog\n", encoding="utf-16")
    (root / "unmarked.csv").write_text("url,caption\na.jpg,a dog\n", encoding="utf-16-le")
    whole = write_tar(root / "whole.tar", tar_members(range(10, 14))).read_bytes()
    (root / "cut.tar").write_bytes(whole[: len(whole) * 2 // 3])
    (root / "merges.txt").write_text("this is no file of merges\n")
    (root / "unlinked.txt").write_text("q u\nzz y\n")
    (root / "merges.gz").write_bytes(gzip.compress(b"t h\n")[:-9])
    return root


def good(folder: Path, **changes: object) -> PairCorpusConfig:
    return PairCorpusConfig("good", [str(folder / "good")], **changes)  # type: ignore[arg-type]


def of(folder: Path, name: str, **changes: object) -> PairCorpusConfig:
    return PairCorpusConfig("c", [str(folder / name)], **changes)  # type: ignore[arg-type]


CASES: dict[str, Callable[[Path, Path], Case]] = {
    "no corpus": lambda out, f: (pair_recipe(out), BadConfig, "pairs is empty"),
    "no captions at all": lambda out, f: (
        pair_recipe(out, of(f, "bare")),
        BadCorpus,
        "corpus c is empty: .*2 caption: missing .*put NAME.txt beside each picture.*caption: folder",
    ),
    "empty captions": lambda out, f: (pair_recipe(out, of(f, "empty")), BadCorpus, "2 caption: empty .*loosen"),
    "empty beside a good one": lambda out, f: (
        pair_recipe(out, good(f), of(f, "empty")),
        BadCorpus,
        "corpus c is empty",
    ),
    "no pictures": lambda out, f: (pair_recipe(out, of(f, "words")), BadCorpus, "none of the 1 files .* is a picture"),
    "no source": lambda out, f: (pair_recipe(out, of(f, "none")), BadCorpus, "no file matches"),
    "unknown column": lambda out, f: (
        pair_recipe(out, of(f, "columns.csv")),
        BadCorpus,
        'no column "url"; it has link, text, n: set path_field',
    ),
    "unknown key": lambda out, f: (
        pair_recipe(out, of(f, "columns.jsonl", path_field="link")),
        BadCorpus,
        'no column "caption"; it has link, text: set caption_field',
    ),
    "paths that do not exist": lambda out, f: (
        pair_recipe(out, of(f, "paths.csv")),
        BadCorpus,
        r"2 read: no such file \(.*paths\.csv:",
    ),
    "only a header": lambda out, f: (pair_recipe(out, of(f, "header.csv")), BadCorpus, r"header\.csv has no rows"),
    "nothing in a list": lambda out, f: (pair_recipe(out, of(f, "nothing.csv")), BadCorpus, "name the columns"),
    "no lines": lambda out, f: (pair_recipe(out, of(f, "nothing.jsonl")), BadCorpus, "has no rows"),
    "broken JSON": lambda out, f: (
        pair_recipe(out, of(f, "broken.json")),
        BadCorpus,
        "no JSON: .*write it as JSON lines",
    ),
    "broken parquet": lambda out, f: (pair_recipe(out, of(f, "broken.parquet")), BadCorpus, "no whole parquet file"),
    "broken CSV": lambda out, f: (
        pair_recipe(out, of(f, "late.csv")),
        BadCorpus,
        "line 3: .*damaged_files: keep to use the rows",
    ),
    "cut tar": lambda out, f: (pair_recipe(out, of(f, "cut.tar")), BadCorpus, "is damaged: .*damaged_files: keep"),
    "texts in lists": lambda out, f: (
        pair_recipe(out, of(f, "texts.parquet")),
        BadCorpus,
        "2 caption: missing .*set caption_field to the column .*one text a row",
    ),
    "UTF-16": lambda out, f: (
        pair_recipe(out, of(f, "marked.csv")),
        BadCorpus,
        r"marked\.csv is UTF-16: save it as UTF-8",
    ),
    "UTF-16 without a mark": lambda out, f: (
        pair_recipe(out, of(f, "unmarked.csv")),
        BadCorpus,
        "no column .*u\ufffdr\ufffdl.*save it as UTF-8",
    ),
    "a list of a tree of classes by name": lambda out, f: (
        pair_recipe(out, good(f), of(f, "columns.csv", caption="folder")),
        BadCorpus,
        'no column "url"',
    ),
    "tiny vocabulary": lambda out, f: (
        pair_recipe(out, good(f), tokenizer=CaptionTokenizerConfig("char", 257)),
        BadConfig,
        "vocab_size is 257, it must be at least 258",
    ),
    "no merges": lambda out, f: (
        pair_recipe(out, good(f), tokenizer=CaptionTokenizerConfig(clip_merges=str(f / "merges.txt"))),
        BadTokenizer,
        "no file of byte-pair merges",
    ),
    "merges of nothing": lambda out, f: (
        pair_recipe(out, good(f), tokenizer=CaptionTokenizerConfig(clip_merges=str(f / "unlinked.txt"))),
        BadTokenizer,
        "merge 2, 'zz y'",
    ),
    "cut merges": lambda out, f: (
        pair_recipe(out, good(f), tokenizer=CaptionTokenizerConfig(clip_merges=str(f / "merges.gz"))),
        BadTokenizer,
        "cannot be read",
    ),
    "two tokenizers": lambda out, f: (
        pair_recipe(out, good(f), tokenizer=CaptionTokenizerConfig(model="a", clip_merges="b")),
        BadConfig,
        "both set",
    ),
    "no model": lambda out, f: (
        pair_recipe(out, good(f), tokenizer=CaptionTokenizerConfig(model="/none.model")),
        BadTokenizer,
        r"/none\.model cannot be read",
    ),
    "large vocabulary": lambda out, f: (
        pair_recipe(out, good(f), tokenizer=CaptionTokenizerConfig(vocab_size=4096)),
        BadTokenizer,
        "vocab_size 4096 is too large for this text: at most",
    ),
    "nothing held out": lambda out, f: (
        pair_recipe(out, good(f), validation_fraction=1e-9),
        BadCorpus,
        "too few to hold any out",
    ),
    "all held out": lambda out, f: (pair_recipe(out, good(f), validation_fraction=0.9999), BadCorpus, "all of its 4"),
    "twice the name": lambda out, f: (pair_recipe(out, good(f), good(f)), BadConfig, "two corpora are named good"),
    "path as name": lambda out, f: (pair_recipe(out, PairCorpusConfig("../x", ["a"])), BadConfig, "corpus name"),
    "name of a file": lambda out, f: (
        pair_recipe(out, PairCorpusConfig("merges.txt", ["a"])),
        BadConfig,
        "writes a file of that name",
    ),
    "weight": lambda out, f: (pair_recipe(out, good(f, weight=0.0)), BadConfig, "weight"),
    "template": lambda out, f: (pair_recipe(out, good(f, template="a {} of a {}")), BadConfig, "once"),
    "template without folder": lambda out, f: (
        pair_recipe(out, good(f, template="a {}")),
        BadConfig,
        "caption: folder",
    ),
    "priority": lambda out, f: (pair_recipe(out, good(f), priority=["god"]), BadConfig, 'priority names "god"'),
    "aspect": lambda out, f: (pair_recipe(out, good(f), filters=PairFilterConfig(max_aspect=0.5)), BadConfig, "aspect"),
    "lengths": lambda out, f: (
        pair_recipe(out, good(f), filters=PairFilterConfig(min_characters=50, max_characters=20)),
        BadConfig,
        "no caption can pass",
    ),
    "language": lambda out, f: (
        pair_recipe(out, good(f), filters=PairFilterConfig(language=CaptionLanguageConfig(keep=["english"]))),
        BadConfig,
        "does not know english",
    ),
    "quality": lambda out, f: (pair_recipe(out, good(f, resize=ResizeConfig(256, 101))), BadConfig, "quality"),
    "distance": lambda out, f: (
        pair_recipe(out, good(f), deduplicate=PairDedupConfig(distance=20)),
        BadConfig,
        "distance is 20",
    ),
    "pixels": lambda out, f: (pair_recipe(out, good(f), max_pixels=10**10), BadConfig, "max_pixels"),
    "copies on both sides": lambda out, f: (
        pair_recipe(
            out, good(f), of(f, "bare", validation_fraction=0.5), deduplicate=PairDedupConfig(perceptual=False)
        ),
        BadConfig,
        "both sides of the split",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(tmp_path: Path, folder: Path, case: str) -> None:
    config, kind, message = CASES[case](tmp_path / "out", folder)
    with pytest.raises(kind, match=message) as error:
        run(config)
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
    left = os.listdir(config.output) if os.path.exists(config.output) else []
    assert set(left) <= {".prepare.lock", ".prepare"}


def test_damaged_files_are_used_up_to_the_damage_on_request(tmp_path: Path, folder: Path) -> None:
    corpora = [
        PairCorpusConfig("tar", [str(folder / "cut.tar")]),
        PairCorpusConfig("list", [str(folder / "late.csv")]),
    ]
    result = run(pair_recipe(tmp_path / "out", *corpora, damaged_files="keep"))
    assert captions_of(tmp_path / "out" / "tar") == [scene(seed)[1] for seed in (10, 11, 12)]
    assert captions_of(tmp_path / "out" / "list") == ["a caption of some length"]
    assert dropped(result) == dropped(result, 1) == {"read: the file is damaged from here on": 1}


def test_the_output_is_never_read_as_a_source(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", range(4))
    config = pair_recipe(tmp_path / "out", PairCorpusConfig("c", [str(tmp_path)]))
    assert prepare_pairs(config, lambda line: None).corpora[0].tally.kept["found"][0] == 4
    config.overwrite = True
    assert prepare_pairs(config, lambda line: None).corpora[0].tally.kept["found"][0] == 4


def trestle(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launcher", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def test_the_command_takes_pairs_and_shows_what_it_made(tmp_path: Path, folder: Path) -> None:
    recipe = tmp_path / "pairs.yaml"
    corpus = {"name": "photos", "sources": [str(folder / "good")]}
    content = {"output": str(tmp_path / "out"), "pairs": [corpus], "tokenizer": {"type": "char", "vocab_size": 400}}
    recipe.write_text(yaml.safe_dump({"prepare": content}))
    done = trestle("prepare", str(recipe), "--prepare.validation_fraction", "0", "--prepare.workers", "1")
    assert done.returncode == 0, done.stderr
    assert "photos" in done.stdout and "report.html" in done.stdout and (tmp_path / "out" / "mix.yaml").exists()
    done = trestle("prepare", str(recipe), "--print_config")
    assert "perceptual: true" in done.stdout and "# Copies and near copies." in done.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpora": []}, "has both `corpora:` (text) and `pairs:`"),
        ({"pair": 3}, "prepare.pair does not exist; did you mean prepare.pairs?"),
        ({"pairs": [{"name": "c"}]}, "prepare.pairs.0.sources is missing"),
        ({"deduplicate": {"distance": "far"}}, "prepare.deduplicate.distance is far; it must be a whole number"),
        ({"pairs": [{"name": "c", "sources": ["/none"]}]}, "no file matches /none"),
    ],
)
def test_the_command_refuses_a_wrong_recipe_in_one_line(
    tmp_path: Path, folder: Path, changes: dict[str, object], message: str
) -> None:
    recipe = tmp_path / "pairs.yaml"
    content = {
        "output": str(tmp_path / "out"),
        "pairs": [{"name": "c", "sources": [str(folder / "good")]}],
        "workers": 1,
    }
    recipe.write_text(yaml.safe_dump({"prepare": {**content, **changes}}))
    done = trestle("prepare", str(recipe))
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
