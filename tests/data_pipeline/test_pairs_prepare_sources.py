"""Where pairs come from: folders, lists of every kind, tars, URLs; and pictures of every kind and none."""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from data_pipeline.config import DataConfig, ShardSource
from data_pipeline.errors import BadCorpus, EnvironmentFailure
from data_pipeline.pairs.prepare.pictures import TOO_MANY_PIXELS, Unfit, examine
from data_pipeline.pairs.recipe import PairCorpusConfig, ResizeConfig
from data_pipeline.pairs.stream import PairStream
from tests.data_pipeline.outputs import hashes, without_reports
from tests.data_pipeline.pair_recipes import captions_of, dropped, pair_recipe, pairs_of, run
from tests.data_pipeline.pictures import encoded, scene, write_folder, write_tar
from tests.data_pipeline.range_server import serving


def test_a_tar_with_missing_halves_and_hostile_names_gives_its_whole_pairs_and_writes_nothing(tmp_path: Path) -> None:
    pictures = [encoded(scene(seed)[0]) for seed in range(6)]
    members = [
        ("a/000.jpg", pictures[0]), ("a/000.txt", b"a picture in a folder"),
        ("only-picture.jpg", pictures[1]),
        ("only-caption.txt", b"a caption without a picture"),
        ("only-facts.json", b"{}"),
        ("../../outside.jpg", pictures[2]), ("../../outside.txt", b"a name that climbs out"),
        ("/etc/absolute.jpg", pictures[3]), ("/etc/absolute.txt", b"an absolute name"),
        ("from-json.jpg", pictures[4]), ("from-json.json", b'{"caption": "said by the json", "url": "http://x/y"}'),
    ]  # fmt: skip
    path = write_tar(tmp_path / "tars" / "one.tar", members)
    with tarfile.open(path, "a") as archive:
        for kind, name in ((tarfile.SYMTYPE, "link.jpg"), (tarfile.LNKTYPE, "hard.jpg")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/passwd"
            archive.addfile(link)
    before = sorted(tmp_path.parent.rglob("outside*"))
    result = run(pair_recipe(tmp_path / "out", PairCorpusConfig("tars", [str(path)])))
    assert captions_of(tmp_path / "out" / "tars") == [
        "a picture in a folder",
        "a name that climbs out",
        "an absolute name",
        "said by the json",
    ]
    assert dropped(result) == {"caption: missing": 1, "read: a caption without a picture": 1}
    assert sorted(tmp_path.parent.rglob("outside*")) == before and not Path("/etc/absolute.jpg").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"tars", "out"}


def list_files(folder: Path, rows: list[tuple[str | None, str | None]]) -> list[Path]:
    """The same rows as a list of every kind."""
    folder.mkdir(exist_ok=True)
    table = pyarrow.table({"URL": [path for path, _ in rows], "TEXT": [caption for _, caption in rows]})
    pyarrow.parquet.write_table(table, folder / "list.parquet")
    with open(folder / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([("n", "TEXT", "URL"), *((1, caption, path) for path, caption in rows)])
    objects = [{"URL": path, "TEXT": caption} for path, caption in rows]
    (folder / "list.json").write_text(json.dumps(objects, indent=1))
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, objects)) + "\n")
    return [folder / f"list.{kind}" for kind in ("parquet", "csv", "json", "jsonl")]


@pytest.mark.parametrize("kind", ["parquet", "csv", "json", "jsonl"])
def test_lists_of_paths_and_urls_with_dead_links(tmp_path: Path, kind: str) -> None:
    write_folder(tmp_path / "served", range(8))
    write_folder(tmp_path / "lists" / "local", range(20, 24))
    with serving(tmp_path / "served") as server:
        rows: list[tuple[str | None, str | None]] = [(f"{server.url}/{n:03d}.jpg", scene(n)[1]) for n in range(8)]
        rows += [(f"local/{n:03d}.jpg", scene(n)[1]) for n in range(20, 24)]
        rows += [
            (f"{server.url}/gone.jpg", "a picture that is gone"),
            ("local/none.jpg", "a file that is not there"),
            ("ftp://example.invalid/x.jpg", "a kind of URL that nobody knows"),
            (None, "no path at all"),
            (f"{server.url}/001.jpg", None),
        ]
        server.fail("unavailable", "/002.jpg", times=1)
        list_files(tmp_path / "lists", rows)
        corpus = PairCorpusConfig(
            "list", [str(tmp_path / "lists" / f"list.{kind}")], path_field="URL", caption_field="TEXT"
        )
        result = run(pair_recipe(tmp_path / "out", corpus, part_rows=3))
        asked = server.asked("/001.jpg")
    assert captions_of(tmp_path / "out" / "list") == [scene(n)[1] for n in [*range(8), *range(20, 24)]]
    assert asked == 1  # not for the row without a caption
    no_caption = "caption: empty" if kind == "csv" else "caption: missing"
    assert dropped(result) == {
        "read: dead link": 1,
        "read: no such file": 1,
        "read: neither a path nor a URL of a known kind": 2,
        no_caption: 1,
    }


def test_a_picture_whose_folder_names_its_class(tmp_path: Path) -> None:
    for name, seeds in (("golden_retriever", range(3)), ("tabby cat", range(3, 5))):
        for path in write_folder(tmp_path / "classes" / name, seeds).glob("*.txt"):
            path.unlink()
    corpus = PairCorpusConfig("classes", [str(tmp_path / "classes")], caption="folder", template="a photo of a {}")
    result = run(pair_recipe(tmp_path / "out", corpus))
    assert captions_of(tmp_path / "out" / "classes") == [
        *["a photo of a golden retriever"] * 3,
        *["a photo of a tabby cat"] * 2,
    ]
    assert dropped(result) == {}


def test_only_what_is_larger_is_written_anew_when_asked_to_resize(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", range(3))
    turned = scene(7, (400, 300))[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned.save(folder / "large.jpg", quality=95, exif=exif)
    (folder / "large.txt").write_text("a large picture on its side")
    corpus = PairCorpusConfig("c", [str(folder)], resize=ResizeConfig(shorter_side=100, quality=80))
    run(pair_recipe(tmp_path / "out", corpus))
    by_caption = {caption: picture for picture, caption in pairs_of(tmp_path / "out" / "c")}
    large = Image.open(io.BytesIO(by_caption["a large picture on its side"]))
    assert large.size == (100, 133) and large.format == "JPEG"
    assert by_caption[scene(1)[1]] == (folder / "001.jpg").read_bytes()


def test_a_list_behind_a_url_names_pictures_beside_it_and_its_server_may_fail_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_pipeline.sources.remote.RETRY_SECONDS", (0.01, 0.01))
    write_folder(tmp_path / "served" / "pictures", range(5))
    rows = "".join(f'{{"url": "pictures/{n:03d}.jpg", "caption": "{scene(n)[1]}"}}\n' for n in range(5))
    (tmp_path / "served" / "list.jsonl").write_text(rows)
    with serving(tmp_path / "served") as server:
        server.fail("unavailable", "/001.jpg")
        server.fail("truncate", "/002.jpg", times=1)
        server.fail("truncate", "/003.jpg")
        result = run(pair_recipe(tmp_path / "out", PairCorpusConfig("c", [f"{server.url}/list.jsonl"])))
    assert captions_of(tmp_path / "out" / "c") == [scene(n)[1] for n in (0, 2, 4)]
    assert dropped(result) == {"read: server out of reach": 2}


def test_a_list_that_cannot_be_reached_stops_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.sources.remote.RETRY_SECONDS", (0.01,))
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as server:
        url = f"{server.url}/list.csv"
        with pytest.raises(BadCorpus, match="does not exist"):
            run(pair_recipe(tmp_path / "out", PairCorpusConfig("c", [url])))
    with pytest.raises(EnvironmentFailure, match="check the network"):
        run(pair_recipe(tmp_path / "out", PairCorpusConfig("c", [url])))


def test_a_folder_in_a_store_is_read_like_one_on_disk(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for path in write_folder(tmp_path / "photos", range(6)).iterdir():
        store.pipe(f"/pairs-of-a-test/photos/{path.name}", path.read_bytes())
    try:
        run(pair_recipe(tmp_path / "out", PairCorpusConfig("c", ["memory://pairs-of-a-test/photos"])))
    finally:
        store.rm("/pairs-of-a-test", recursive=True)
    assert captions_of(tmp_path / "out" / "c") == [scene(seed)[1] for seed in range(6)]


def test_how_many_rows_a_task_reads_changes_no_byte(tmp_path: Path) -> None:
    write_folder(tmp_path / "local", range(25))
    list_files(tmp_path, [(f"local/{n:03d}.jpg", scene(n)[1]) for n in [*range(25), 3, 4]])
    found = []
    for rows in (4, 1000):
        sources = [str(tmp_path / "list.csv"), str(tmp_path / "list.parquet")]
        corpus = PairCorpusConfig("c", sources, path_field="URL", caption_field="TEXT")
        result = run(pair_recipe(tmp_path / f"out{rows}", corpus, part_rows=rows, validation_fraction=0.3))
        assert dropped(result) == {"copies: a picture that has come before": 29}
        assert result.corpora[0].tally.files == 2
        found.append({**without_reports(hashes(tmp_path / f"out{rows}")), "mix.yaml": ""})
    assert found[0] == found[1]


def test_the_stream_reads_what_was_prepared(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", range(12))
    write_folder(tmp_path / "photos", range(12, 16), "PNG")
    grey = scene(20)[0].convert("L")
    (tmp_path / "photos" / "grey.webp").write_bytes(encoded(grey, "WEBP"))
    (tmp_path / "photos" / "grey.txt").write_text("a picture without colours")
    run(pair_recipe(tmp_path / "out", PairCorpusConfig("c", [str(tmp_path / "photos")])))
    config = DataConfig(mix=[ShardSource(str(tmp_path / "out" / "c"))])
    batch = PairStream(config, 1, image_size=32, context_length=16).batch(0, 17, 0, 1)
    assert batch.images.shape == (17, 3, 32, 32) and batch.tokens.shape == (17, 16)


def _told(content: bytes) -> str:
    try:
        pixels = examine(content, 1 << 20).pixels
    except Unfit as reason:
        return str(reason)
    return "" if pixels.dtype == np.uint8 and pixels.ndim == 3 else "no pixels"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_of_broken_bytes_a_picture_or_a_reason_comes_out_and_nothing_else(kind: str) -> None:
    """What passes is what training decodes; what does not has one of three reasons."""
    whole, draw = encoded(scene(1)[0], kind), random.Random(kind)
    reasons = {"", "picture: no JPEG, PNG or WebP", "picture: truncated or damaged", TOO_MANY_PIXELS}
    told = set()
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(draw.randrange(1, 8)):
            content[draw.randrange(len(content) if draw.random() < 0.5 else 64)] = draw.randrange(256)
        if draw.random() < 0.3:
            del content[draw.randrange(len(content)) :]
        told.add(_told(bytes(content)))
    assert told <= reasons
    for end in range(0, len(whole) - 40, 97):
        with pytest.raises(Unfit):
            examine(whole[:end], 1 << 20)
