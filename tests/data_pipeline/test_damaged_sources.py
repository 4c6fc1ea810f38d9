"""Files that break off, are broken, or are not what their names say."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_pipeline.errors import BadCorpus
from tests.data_pipeline.crawl import Page, write_warc
from tests.data_pipeline.reading import dropped, named, read

DAMAGED = "read: the file is damaged from here on"
DRAW = random.Random(0)
TEXTS = [f"{number} " + " ".join(str(DRAW.random()) for _ in range(DRAW.randrange(300))) for number in range(60)]
JSON_LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def tar_of_texts() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        for number, text in enumerate(TEXTS):
            info = tarfile.TarInfo(f"{number}.{'txt' if number % 2 else 'json'}")
            content = text if number % 2 else json.dumps({"text": text})
            info.size = len(content)
            file.addfile(info, io.BytesIO(content.encode()))
    return archive.getvalue()


def warc_of_texts(folder: Path) -> bytes:
    path = folder / "whole"
    write_warc(path, (Page(f"https://x/{number}", f"<p>{text}") for number, text in enumerate(TEXTS)))
    return path.read_bytes()


def parquet_of_texts() -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.table({"text": TEXTS}), file, row_group_size=10, compression="none", write_page_checksum=True
    )
    return file.getvalue()


def whole_file(kind: str, folder: Path) -> bytes:
    """A whole file with all of TEXTS, of the kind that its name says."""
    if kind.startswith("warc"):
        content = warc_of_texts(folder)
        return content if kind == "warc.gz" else gzip.decompress(content)
    if kind == "parquet":
        return parquet_of_texts()
    if kind.startswith("tar"):
        return gzip.compress(tar_of_texts()) if kind == "tar.gz" else tar_of_texts()
    compress: dict[str, Callable[[bytes], bytes]] = {
        "gz": gzip.compress,
        "zst": zstandard.compress,
        "bz2": bz2.compress,
        "xz": lzma.compress,
    }
    return compress[kind.removeprefix("jsonl.")](JSON_LINES)


@pytest.mark.parametrize(
    "kind", ["jsonl.gz", "jsonl.zst", "jsonl.bz2", "jsonl.xz", "warc", "warc.gz", "tar", "tar.gz", "parquet"]
)
def test_wherever_a_file_breaks_off_the_damage_is_told_and_the_documents_before_are_kept(
    tmp_path: Path, kind: str
) -> None:
    whole = whole_file(kind, tmp_path)
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(whole)
    everything = [document.text for document in read(path)[0]]
    assert [text.removeprefix("<p>") for text in everything] == TEXTS
    draw = random.Random(kind)
    for _ in range(25):
        cut = draw.randrange(1, len(whole.rstrip(b"\0")) - 1)  # a tar ends with zeros that nobody misses
        path.write_bytes(whole[:cut])
        documents, tally = read(path, damaged_files="keep")
        assert [document.text for document in documents] == everything[: len(documents)]
        assert dropped(tally).get(DAMAGED) == 1 and named(tally, DAMAGED)[0].startswith(f"{path}: ")
        # Not much before the damage is lost: what a compressor holds back, or one record.
        if kind in ("warc", "tar"):
            kept = sum(len(document.text) for document in documents)
            assert cut - kept < 1100 * (len(documents) + 1) + max(map(len, TEXTS))
    with pytest.raises(BadCorpus, match=r"is damaged: .*; repair or exclude it, or set damaged_files: keep") as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["warc", "tar", "parquet", "jsonl.gz", "jsonl.zst"])
def test_broken_bytes_in_the_middle_are_told(tmp_path: Path, kind: str) -> None:
    whole = bytearray(whole_file(kind, tmp_path))
    middle = {"warc": whole.find(b"WARC/1", len(whole) // 2), "tar": whole.find(b"ustar", len(whole) // 2)}.get(
        kind, len(whole) // 2
    )
    whole[middle : middle + 4] = b"\xfe\xdc\xba\x98"
    path = tmp_path / f"broken.{kind}"
    path.write_bytes(whole)
    documents, tally = read(path, damaged_files="keep")
    assert dropped(tally).get(DAMAGED) == 1
    # Compressors see it at the end of a block; parquet with its page.
    assert (5 if kind in ("warc", "tar", "parquet") else 0) <= len(documents) < len(TEXTS)
    assert [document.text.removeprefix("<p>") for document in documents] == TEXTS[: len(documents)]


@pytest.mark.parametrize("name", ["a.gz", "a.zst", "a.bz2", "a.xz", "a.parquet", "a.tar", "a.warc", "a.warc.gz"])
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"plain text, nothing else. " * 100)
    with pytest.raises(BadCorpus, match="is damaged") as error:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_parquet_inside_a_compressed_file(tmp_path: Path) -> None:
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(parquet_of_texts()))
    with pytest.raises(BadCorpus, match=r"a\.parquet\.gz: .*unpack it"):
        read(tmp_path)


def test_other_files_are_read_after_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("before")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(JSON_LINES)[:-1])
    (tmp_path / "c.txt").write_text("after")
    documents, tally = read(tmp_path, damaged_files="keep")
    assert [document.text for document in documents] == ["before", *TEXTS, "after"]
    assert tally.files == 3 and named(tally, DAMAGED) == [f"{tmp_path}/b.jsonl.gz: the compressed data break off"]


def test_padding_after_compressed_data_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(JSON_LINES) + bytes(1000) + gzip.compress(JSON_LINES))
    documents, tally = read(tmp_path)
    assert [document.text for document in documents] == TEXTS * 2 and not tally.dropped
