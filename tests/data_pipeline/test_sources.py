"""Files → documents: what each format gives."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import Tally
from data_pipeline.errors import BadCorpus
from data_pipeline.sources import find_files, read_documents
from data_pipeline.sources.decompression import COMPRESSIONS, decompressed
from data_pipeline.sources.json_lines import lines
from tests.data_pipeline.reading import TEXTS, dropped, named, read, texts

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".dz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def json_lines(field: str = "text") -> bytes:
    return "".join(json.dumps({field: text, "n": 1}, ensure_ascii=False) + "\n" for text in TEXTS).encode()


def tar(members: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=format) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return archive.getvalue()


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines())
    (tmp_path / "b.NDJSON").write_bytes(json_lines())
    (tmp_path / "c.parquet").mkdir()
    table = pyarrow.table({"n": [1, 2, 3], "text": TEXTS})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet" / "part-0.parquet", row_group_size=2)
    members = {f"{n}.txt": text.encode() for n, text in enumerate(TEXTS)}
    (tmp_path / "d.tar").write_bytes(tar(members))
    for path in sorted(tmp_path.iterdir()):
        assert texts(path) == TEXTS
    assert texts(tmp_path) == TEXTS * 4
    folder = tmp_path / "folder" / "inner"
    folder.mkdir(parents=True)
    for name, content in members.items():
        (folder / name).write_bytes(content)
    (folder / "page.htm").write_text("<p>page")
    documents, tally = read(tmp_path / "folder")
    assert [(document.text, document.html) for document in documents] == [
        *((text, False) for text in TEXTS),
        ("<p>page", True),
    ]
    assert tally.files == 4 and not tally.dropped and documents[0].source == str(folder / "0.txt")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_format_may_be_compressed(tmp_path: Path, compression: str) -> None:
    compress = COMPRESS[compression]
    half = json_lines()[:30], json_lines()[30:]
    (tmp_path / f"a.jsonl{compression}").write_bytes(compress(half[0]) + compress(half[1]))
    (tmp_path / f"b.tar{compression}").write_bytes(compress(tar({"0.txt": b"in a tar"})))
    (tmp_path / f"c{compression}").write_bytes(compress(b"no suffix"))
    (tmp_path / f"d.html{compression}").write_bytes(compress(b"<p>page"))
    documents, tally = read(tmp_path)
    assert [document.text for document in documents] == [*TEXTS, "in a tar", "no suffix", "<p>page"]
    assert documents[-1].html and not tally.dropped


def test_another_text_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines("body"))
    pyarrow.parquet.write_table(pyarrow.table({"body": TEXTS}), tmp_path / "b.parquet")
    (tmp_path / "c.tar").write_bytes(tar({"0.json": json_lines("body").splitlines()[0]}))
    assert texts(tmp_path, text_field="body") == [*TEXTS * 2, TEXTS[0]]
    documents, tally = read(tmp_path / "a.jsonl", tmp_path / "c.tar")
    assert documents == [] and dropped(tally) == {'read: without a text field "text"': 4}
    with pytest.raises(BadCorpus, match=r'b\.parquet has no column "text" but body'):
        texts(tmp_path / "b.parquet")


def test_parquet_columns_of_every_kind_of_text(tmp_path: Path) -> None:
    columns = {
        "plain": pyarrow.array([*TEXTS, None, "", "x" * 99]),
        "dictionary": pyarrow.array([*TEXTS, None, "", "x" * 99]).dictionary_encode(),
        "binary": pyarrow.array([*(text.encode() for text in TEXTS), None, b"", b"\xff"]),
        "number": pyarrow.array(range(6)),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    for field in ("plain", "dictionary", "binary"):
        documents, tally = read(tmp_path / "a.parquet", text_field=field, max_document_bytes=50)
        assert [document.text for document in documents] == TEXTS
        last = "read: invalid UTF-8" if field == "binary" else "read: longer than max_document_bytes"
        assert dropped(tally) == {f'read: without a text field "{field}"': 1, "read: empty": 1, last: 1}
        assert named(tally, last) == [f"{tmp_path}/a.parquet:6"]
    with pytest.raises(BadCorpus, match='the column "number" holds int64, not texts'):
        texts(tmp_path / "a.parquet", text_field="number")


def test_samples_of_a_tar(tmp_path: Path) -> None:
    long = "a/" * 120 + "long"
    members = {
        "x/1.jpg": b"\xff\xd8",
        "x/1.json": b'{"text": "metadata of a caption"}',
        "x/1.txt": b"a caption",
        "x/2.json": b'{"text": "a document"}',
        "x/3.pkl": b"never unpickled",
        f"{long}.txt": b"a long name",
        "/etc/../../escape.txt": b"a hostile name",
        "big.txt": b"b" * 100,
        "empty.txt": b"",
    }
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        (tmp_path / "a.tar").write_bytes(tar(members, format) + tar({"later.txt": b"a second archive"}, format))
        documents, tally = read(tmp_path / "a.tar", max_document_bytes=50)
        assert [(document.text, document.source.partition(".tar:")[2]) for document in documents] == [
            ("a caption", "x/1.txt"),
            ("a document", "x/2.json"),
            ("a long name", f"{long}.txt"),
            ("a hostile name", "/etc/../../escape.txt"),
            ("a second archive", "later.txt"),
        ]
        assert dropped(tally) == {
            "read: a tar member that is no text": 3,
            "read: longer than max_document_bytes": 1,
            "read: empty": 1,
        }
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_what_cannot_be_read_is_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "empty.txt.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "empty.jsonl").write_bytes(b"")
    os.symlink("nowhere", tmp_path / "gone.txt")
    os.mkfifo(tmp_path / "pipe")
    deep = b"[" * 100_000
    (tmp_path / "lines.jsonl").write_bytes(
        b'{"text": "\xff"}\n{"text": \n{"text": "\\ud800"}\n["x"]\n\n{"text": "fine"}\n{"text": ""}\n' + deep
    )
    documents, tally = read(tmp_path)
    assert [document.text for document in documents] == ["good", "fine"]
    assert dropped(tally) == {
        "read: invalid UTF-8": 3,
        "read: unreadable": 2,
        "read: broken JSON": 2,
        "read: empty": 3,
        'read: without a text field "text"': 1,
    }
    assert named(tally, "read: unreadable") == [
        f"{tmp_path}/gone.txt: No such file or directory",
        f"{tmp_path}/pipe: Not a regular file",
    ]
    assert named(tally, "read: invalid UTF-8") == [
        f"{tmp_path}/{name}" for name in ("latin.txt", "lines.jsonl:1", "lines.jsonl:3")
    ]
    assert named(tally, "read: empty") == [
        f"{tmp_path}/{name}" for name in ("empty.jsonl", "empty.txt.gz", "lines.jsonl:7")
    ]
    assert tally.files == 7 and "\n" not in str(tally)


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.txt"
    Path(os.fsdecode(path)).write_text("text")
    (document,), _ = read(tmp_path)
    assert document.source == f"{tmp_path}/\ufffd.txt"


@pytest.mark.parametrize("name", ["line.jsonl.zst", "text.txt.zst", "page.html.zst", "member.tar.zst"])
def test_memory_stays_bounded(tmp_path: Path, name: str) -> None:
    size = 512 << 20
    header = tarfile.TarInfo("big.txt")
    header.size = size
    before, after = {
        "line.jsonl.zst": (b'{"text": "', b'"}\n{"text": "after"}\n'),
        "member.tar.zst": (header.tobuf(), tar({"after.txt": b"after"})),
    }.get(name, (b"", b""))
    with zstandard.open(tmp_path / name, "wb") as file:
        file.write(before)
        for _ in range(size >> 24):
            file.write(b" " * (1 << 24))
        file.write(after)
    tracemalloc.start()
    documents, tally = read(tmp_path / name, max_document_bytes=1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [document.text for document in documents] == (["after"] if after else [])
    assert dropped(tally) == {"read: longer than max_document_bytes": 1}
    assert peak < 80 << 20


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


@given(st.lists(TEXT, min_size=1, max_size=8), st.sampled_from(["", ".gz", ".zst"]), st.data())
@settings(max_examples=60, deadline=None)
def test_documents_survive_json_lines_and_tars(written: list[str], compression: str, data: st.DataObject) -> None:
    compress = COMPRESS.get(compression, bytes)
    jsonl = "".join(json.dumps({"text": text}, ensure_ascii=data.draw(st.booleans())) + "\n" for text in written)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"a.jsonl{compression}").write_bytes(compress(jsonl.encode()))
        members = {f"{number:03d}.txt": text.encode() for number, text in enumerate(written)}
        (Path(folder) / f"b.tar{compression}").write_bytes(compress(tar(members)))
        documents, tally = read(folder)
    kept = [text for text in written if text]
    assert [document.text for document in documents] == kept * 2
    assert dropped(tally).get("read: empty", 0) == 2 * (len(written) - len(kept))


@given(st.lists(st.binary(max_size=12)), st.integers(0, 12))
def test_lines_do_not_depend_on_where_the_pieces_end(pieces: list[bytes], limit: int) -> None:
    content = b"".join(pieces)
    expected = [line if len(line) <= limit else None for line in content.split(b"\n")]
    if content.endswith(b"\n") or not content:
        expected.pop()
    assert list(lines(pieces, limit)) == expected


@given(st.binary(max_size=3000), st.sampled_from(COMPRESSIONS), st.integers(1, 3), st.integers(1, 400))
@settings(deadline=None)
def test_decompression_does_not_depend_on_where_the_blocks_end(
    content: bytes, compression: str, members: int, step: int
) -> None:
    packed = COMPRESS[compression](content) * members
    blocks = [packed[start : start + step] for start in range(0, len(packed), step)]
    assert b"".join(decompressed(blocks, compression)) == content * members


def test_documents_come_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip")
    tally = Tally()
    documents = read_documents(find_files([str(tmp_path)], [], "c"), tally)
    assert next(documents).text == "a"  # before the damage of the next file is seen
    assert tally.files == 1
