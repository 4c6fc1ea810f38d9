"""`prepare` for pictures with captions as a whole: what it writes, what it drops and why, twice alike."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset
import yaml
from PIL import Image

from cluster.config import ClusterConfig
from cluster.session import open_session
from data_pipeline.errors import BadConfig
from data_pipeline.pairs.prepare import PairPrepareResult, prepare_pairs
from data_pipeline.pairs.reader import PairSet
from data_pipeline.pairs.recipe import (
    CaptionLanguageConfig,
    CaptionTokenizerConfig,
    PairCorpusConfig,
    PairDedupConfig,
    PairFilterConfig,
)
from data_pipeline.pairs.tokenizers import open_caption_tokenizer
from data_pipeline.prepare.ray_tasks import RayTasks
from tests.data_pipeline.outputs import hashes, without_reports
from tests.data_pipeline.pair_recipes import captions_of, dropped, pair_recipe, pairs_of, run
from tests.data_pipeline.pictures import encoded, scene, tar_members, write_folder, write_tar

# -- what is written ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three corpora of every kind of source: folders, a list, a tar; without anything wrong in them."""
    root = tmp_path_factory.mktemp("sources")
    write_folder(root / "photos", range(20))
    write_folder(root / "photos" / "more", range(20, 30), "PNG")
    write_folder(root / "photos", range(30, 35), "WEBP")
    write_tar(root / "tars" / "00000.tar", tar_members(range(40, 60)))
    write_tar(root / "tars" / "00001.tar", tar_members(range(60, 65), "PNG"))
    # What img2dataset lays beside a tar is no list.
    (root / "tars" / "00000_stats.json").write_text('{"count": 20}')
    (root / "tars" / "00000.parquet").write_bytes(b"never read")
    return root


def three_corpora(root: Path) -> list[PairCorpusConfig]:
    return [
        PairCorpusConfig("photos", [str(root / "photos")], 0.7),
        PairCorpusConfig("tars", [str(root / "tars")], 0.3),
    ]


@pytest.fixture(scope="module")
def prepared(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PairPrepareResult]:
    output = tmp_path_factory.mktemp("prepared") / "shards"
    return output, run(pair_recipe(output, *three_corpora(sources), validation_fraction=0.25))


def test_what_is_written_is_what_the_result_and_the_mix_say(prepared: tuple[Path, PairPrepareResult]) -> None:
    output, result = prepared
    assert sorted(path.name for path in output.iterdir() if not path.name.startswith(".")) == [
        "mix.yaml", "photos", "photos-validation", "report.html", "report.json", "tars", "tars-validation",
        "tokenizer.model",
    ]  # fmt: skip
    assert not (output / ".prepare").exists()
    tokenizer = open_caption_tokenizer(output / "tokenizer.model")
    assert (tokenizer.sha256, tokenizer.vocab_size) == (result.tokenizer_sha256, result.vocab_size)
    for corpus in result.corpora:
        assert corpus.training is not None and corpus.validation is not None
        for written in (corpus.training, corpus.validation):
            pairs = PairSet(written.path)
            assert (pairs.name, len(pairs)) == (written.name, written.samples)
            assert pairs.caption_tokenizer().sha256 == result.tokenizer_sha256
        assert corpus.tally.dropped == {}
    mix = yaml.safe_load((output / "mix.yaml").read_text())
    assert mix["mix"] == [
        {"shards": str(output / "photos"), "weight": 0.7},
        {"shards": str(output / "tars"), "weight": 0.3},
    ]
    assert mix["validation"] == [{"shards": str(output / f"{name}-validation")} for name in ("photos", "tars")]


def test_the_bytes_of_every_picture_are_kept_and_its_caption_stays_with_it(
    prepared: tuple[Path, PairPrepareResult], sources: Path
) -> None:
    output, _ = prepared
    files = [path for path in sources.glob("photos/**/*") if path.suffix in (".jpg", ".png", ".webp")]
    wanted = {(path.read_bytes(), path.with_suffix(".txt").read_text().strip()) for path in files}
    assert {*pairs_of(output / "photos"), *pairs_of(output / "photos-validation")} == wanted and len(wanted) == 35
    wanted = {(content, scene(int(name[:9]))[1]) for name, content in _pictures_of_tars()}
    assert {*pairs_of(output / "tars"), *pairs_of(output / "tars-validation")} == wanted and len(wanted) == 25


def _pictures_of_tars() -> Iterator[tuple[str, bytes]]:
    for members in (tar_members(range(40, 60)), tar_members(range(60, 65), "PNG")):
        yield from ((name, content) for name, content in members if name.endswith((".jpg", ".png")))


def test_stock_webdataset_reads_the_shards(prepared: tuple[Path, PairPrepareResult]) -> None:
    output, _ = prepared
    samples = list(webdataset.WebDataset(str(output / "photos" / "00000.tar"), shardshuffle=False))
    assert [sample["txt"].decode() for sample in samples] == captions_of(output / "photos")
    for sample in samples:
        (extension,) = {"jpg", "png", "webp"} & set(sample)
        image = Image.open(io.BytesIO(sample[extension]))
        facts = json.loads(sample["json"])
        assert facts["key"].endswith(extension) and image.size == (facts["width"], facts["height"])


def test_twice_gives_the_same_bytes_from_another_folder_and_in_parts_of_any_size(
    prepared: tuple[Path, PairPrepareResult], sources: Path, tmp_path: Path
) -> None:
    shutil.copytree(sources, tmp_path / "moved")
    again = pair_recipe(
        tmp_path / "again", *three_corpora(tmp_path / "moved"), validation_fraction=0.25, part_bytes=10_000
    )
    run(again)
    first, second = (without_reports(hashes(folder)) for folder in (prepared[0], tmp_path / "again"))
    assert {**first, "mix.yaml": ""} == {**second, "mix.yaml": ""} and len(first) > 15


def test_workers_change_no_byte(prepared: tuple[Path, PairPrepareResult], sources: Path, tmp_path: Path) -> None:
    config = pair_recipe(tmp_path / "ray", *three_corpora(sources), validation_fraction=0.25, part_bytes=20_000)
    with open_session(ClusterConfig(), 2, on_close=lambda: None):
        prepare_pairs(config, lambda line: None, RayTasks())
    first, second = (without_reports(hashes(folder)) for folder in (prepared[0], tmp_path / "ray"))
    assert {**first, "mix.yaml": ""} == {**second, "mix.yaml": ""}


def test_a_finished_output_is_replaced_on_request_only(sources: Path, tmp_path: Path) -> None:
    config = pair_recipe(tmp_path / "out", PairCorpusConfig("photos", [str(sources / "photos" / "more")]))
    run(config)
    before = hashes(tmp_path / "out")
    with pytest.raises(BadConfig, match="overwrite: true"):
        run(config)
    assert hashes(tmp_path / "out") == before
    config.overwrite = True
    config.pairs[0].exclude = ["*020.png"]
    run(config)
    assert len(PairSet(tmp_path / "out" / "photos")) == 9


# -- what is dropped ---------------------------------------------------------------------------------------------------


def test_every_fault_of_a_pair_is_counted_under_its_reason(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", range(6))

    def plant(name: str, picture: bytes, caption: str | bytes | None = "a picture with something wrong") -> None:
        (folder / name).write_bytes(picture)
        if caption is not None:
            text = caption if isinstance(caption, bytes) else caption.encode()
            (folder / name).with_suffix(".txt").write_bytes(text)

    jpeg, png, webp = (encoded(scene(50)[0], kind) for kind in ("JPEG", "PNG", "WEBP"))
    plant("cut.jpg", jpeg[: len(jpeg) // 2])
    plant("cut.png", png[: len(png) // 2])
    plant("cut.webp", webp[: len(webp) // 2])
    plant("text.jpg", b"this is no picture")
    plant("nothing.jpg", b"")
    plant("animated.gif", encoded(scene(51)[0].convert("P"), "GIF"))
    plant("tiny.png", encoded(scene(52, (40, 90))[0], "PNG"))
    plant("wide.png", encoded(scene(53, (300, 70))[0], "PNG"))
    plant("bomb.png", encoded(Image.new("1", (9000, 9000)), "PNG"))
    plant("empty-caption.jpg", jpeg, " \n\t")
    plant("no-caption.jpg", jpeg, None)
    plant("short-caption.jpg", jpeg, "dog")
    plant("long-caption.jpg", jpeg, "very " * 300)
    plant("latin-caption.jpg", jpeg, "ein großer Hund".encode("latin-1"))
    plant("noise.jpg", jpeg, "ein Hund läuft über die grüne Wiese im Park neben dem großen Haus")
    (folder / "lonely.txt").write_text("a caption without its picture")
    (folder / "notes.md").write_text("not of the data")
    filters = PairFilterConfig(language=CaptionLanguageConfig(keep=["en"], max_distance=1500, min_characters=25))
    config = pair_recipe(tmp_path / "out", PairCorpusConfig("photos", [str(folder)]), filters=filters)
    result = run(config)
    assert dropped(result) == {
        "picture: truncated or damaged": 3,
        "picture: no JPEG, PNG or WebP": 2,
        "read: empty file": 1,
        "picture: more pixels than max_pixels": 1,
        "size: shorter side below 64 pixels": 1,
        "size: sides of more than 3 to 1": 1,
        "caption: empty": 1,
        "caption: missing": 1,
        "caption: shorter than 5 characters": 1,
        "caption: longer than 1000 characters": 1,
        "caption: invalid UTF-8": 1,
        "language: not one of en": 1,
        "read: a caption without a picture": 1,
    }
    tally = result.corpora[0].tally
    assert tally.kept["found"][0] == 22 and tally.kept["near copies"][0] == 6
    assert captions_of(tmp_path / "out" / "photos") == [scene(seed)[1] for seed in range(6)]


def test_of_copies_and_near_copies_the_first_in_order_of_priority_stays(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "first", range(10))
    second = write_folder(tmp_path / "second", range(20, 25))
    (second / "same-bytes.jpg").write_bytes((first / "003.jpg").read_bytes())
    (second / "same-bytes.txt").write_text("the same file under another caption")
    for name, content in (
        ("coarse.jpg", encoded(scene(4)[0], quality=40)),
        ("small.jpg", encoded(scene(5)[0].resize((77, 64)), quality=90)),
        ("large.webp", encoded(scene(6)[0].resize((288, 240)), "WEBP")),
    ):
        (second / name).write_bytes(content)
        (second / name).with_suffix(".txt").write_text(f"nearly a copy, {name}")
    corpora = [PairCorpusConfig("second", [str(second)]), PairCorpusConfig("first", [str(first)])]
    result = run(pair_recipe(tmp_path / "out", *corpora, priority=["first"]))
    assert dropped(result) == {
        "copies: a picture that has come before": 1,
        "near copies: a picture that looks like one before": 3,
    }
    assert captions_of(tmp_path / "out" / "second") == [scene(seed)[1] for seed in range(20, 25)]
    assert len(PairSet(tmp_path / "out" / "first")) == 10
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    shown = {
        example["caption"]: example["kept"]["caption"]
        for drop in report["corpora"][0]["dropped"]
        for example in drop["examples"]
    }
    assert shown["the same file under another caption"] == scene(3)[1]
    assert shown["nearly a copy, small.jpg"] == scene(5)[1]
    # The other way round without a word on priority, and nothing at all without deduplication.
    result = run(pair_recipe(tmp_path / "reverse", *corpora))
    assert dropped(result) == {} and sum(dropped(result, 1).values()) == 4
    off = PairDedupConfig(exact=False, perceptual=False)
    result = run(pair_recipe(tmp_path / "all", *corpora, deduplicate=off))
    assert dropped(result) == dropped(result, 1) == {}


def test_the_same_shapes_in_other_colours_are_no_copies(tmp_path: Path) -> None:
    for name, colour in (("red", (220, 30, 30)), ("blue", (60, 60, 250)), ("plain", None)):
        image = Image.new("RGB", (80, 80), (250, 250, 250))
        if colour:
            image.paste(colour, (20, 20, 60, 60))
        (tmp_path / f"{name}.png").write_bytes(encoded(image, "PNG"))
        (tmp_path / f"{name}.txt").write_text(f"a {name} square")
    for name, colour in (("black", 0), ("grey", 128)):
        (tmp_path / f"{name}.png").write_bytes(encoded(Image.new("L", (80, 80), colour), "PNG"))
        (tmp_path / f"{name}.txt").write_text(f"a {name} square")
    result = run(pair_recipe(tmp_path / "out", PairCorpusConfig("c", [str(tmp_path / "*.png"), str(tmp_path)])))
    assert dropped(result) == {}


def test_copies_that_are_kept_lie_on_one_side_of_the_split(tmp_path: Path) -> None:
    for seed in range(24):
        for quality in (95, 60, 35):
            image, caption = scene(seed)
            (tmp_path / f"{quality}-{seed:02d}.jpg").write_bytes(encoded(image, quality=quality))
            (tmp_path / f"{quality}-{seed:02d}.txt").write_text(caption)
    corpus = PairCorpusConfig("c", [str(tmp_path)])
    off = PairDedupConfig(perceptual=False)
    run(pair_recipe(tmp_path / "out", corpus, deduplicate=off, validation_fraction=0.3))
    training, held_out = (captions_of(tmp_path / "out" / name) for name in ("c", "c-validation"))
    assert len(training) + len(held_out) == 72 and held_out
    assert not set(training) & set(held_out)


# -- the tokenizer -----------------------------------------------------------------------------------------------------


def test_a_tokenizer_of_the_users_own_is_taken_over(tmp_path: Path, prepared: tuple[Path, PairPrepareResult]) -> None:
    folder = write_folder(tmp_path / "photos", range(3))
    merges = tmp_path / "bpe.txt"
    merges.write_text("#version: 0.2\nt h\nth e</w>\nr e\n")
    config = pair_recipe(
        tmp_path / "bpe",
        PairCorpusConfig("c", [str(folder)]),
        tokenizer=CaptionTokenizerConfig(clip_merges=str(merges)),
    )
    result = run(config)
    assert (tmp_path / "bpe" / "merges.txt").read_bytes() == merges.read_bytes()
    assert result.vocab_size == 512 + 3 + 2
    assert PairSet(tmp_path / "bpe" / "c").caption_tokenizer().vocab_size == 517
    model = prepared[0] / "tokenizer.model"
    config = pair_recipe(
        tmp_path / "model", PairCorpusConfig("c", [str(folder)]), tokenizer=CaptionTokenizerConfig(model=str(model))
    )
    assert run(config).tokenizer_sha256 == prepared[1].tokenizer_sha256
