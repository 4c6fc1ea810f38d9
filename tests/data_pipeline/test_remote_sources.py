"""Files behind URLs, from a real http server and from fsspec's memory store."""

from __future__ import annotations

import gzip
import http.server
import json
import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from data_pipeline.errors import BadConfig, BadCorpus, EnvironmentFailure
from data_pipeline.sources import find_files, open_source, remote
from tests.data_pipeline.reading import TEXTS, dropped, read, texts

JSON_LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


class Server(http.server.ThreadingHTTPServer):
    """Serves a dictionary. What is wrong with the server is set by the tests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        self.knows_ranges = True
        self.says_lengths = True
        self.busy = 0
        """Requests that are refused with 503 from now on."""
        self.breaks: list[int] = []
        """Bytes after which the next bodies break off."""
        self.ranges: list[str] = []
        """Ranges that were asked for."""

    def handle_error(self, *_: object) -> None:
        """A client that went away is no error."""

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        server = self.server
        content = server.files.get(self.path.partition("?")[0][1:])
        if server.busy or content is None or self.path == "/secret.txt":
            status = 503 if server.busy else 404 if content is None else 403
            server.busy = max(0, server.busy - 1)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return b""
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked:
            server.ranges.append(asked[0])
        if asked and server.knows_ranges:
            first, last = int(asked[1]), int(asked[2])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}")
            content = content[first : last + 1]
        else:
            self.send_response(200)
        if server.says_lengths:
            self.send_header("Content-Length", str(len(content)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if server.breaks and self.command == "GET":
            self.close_connection = True
            return content[: server.breaks.pop(0)]
        return content

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_every_format_over_http(server: Server, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "c.parquet")
    server.files = {
        "a.jsonl.gz": gzip.compress(JSON_LINES),
        "b.txt": b"text",
        "c.parquet": (tmp_path / "c.parquet").read_bytes(),
    }
    for ranges in (True, False):
        server.knows_ranges = ranges
        documents, tally = read(*(server.url(name) for name in ("b.txt", "c.parquet", "a.jsonl.gz")))
        assert [document.text for document in documents] == [*TEXTS, "text", *TEXTS] and tally.files == 3
        assert documents[0].source == server.url("a.jsonl.gz:1")
    assert texts(server.url("a.jsonl.gz?key=1#x")) == TEXTS


def test_a_long_file_is_read_in_ranges_or_as_one_stream(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_BLOCK", 1 << 16)
    server.files["a.jsonl"] = JSON_LINES * 5000
    for ranges, lengths in ((True, True), (False, True), (True, False)):
        server.knows_ranges, server.says_lengths = ranges, lengths
        assert texts(server.url("a.jsonl")) == TEXTS * 5000
    assert len(set(server.ranges)) == 4


def test_seeking(server: Server) -> None:
    content = bytes(range(256)) * 100
    server.files["a.bin"] = content
    for ranges in (True, False):
        server.knows_ranges = ranges
        with open_source(server.url("a.bin")) as file:
            for offset, whence in ((-10, 2), (300, 0), (5, 1), (0, 0)):
                start = file.seek(offset, whence)
                assert file.read(7) == content[start : start + 7] and file.tell() == start + 7
            assert file.read() == content[7:] and file.read(1) == b""


def test_the_bytes_of_the_file_and_not_of_a_helpful_server(server: Server) -> None:
    server.files["a.jsonl.gz"] = gzip.compress(JSON_LINES)
    server.headers = {"Content-Encoding": "gzip"}
    assert texts(server.url("a.jsonl.gz")) == TEXTS


def test_size_and_version(server: Server) -> None:
    server.files["a.txt"] = b"four"
    server.headers = {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
    (old,) = find_files([server.url("a.txt")], [], "c")
    assert old.size == 4 and old.version == server.headers["Last-Modified"]
    server.headers["ETag"] = '"2"'
    (new,) = find_files([server.url("a.txt")], [], "c")
    assert new.version == '"2"'


@pytest.mark.parametrize("ranges", [True, False])
def test_reading_goes_on_where_the_connection_broke(
    server: Server, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    monkeypatch.setattr(remote, "_BLOCK", 1 << 18)
    server.files["a.jsonl"] = JSON_LINES * 8000
    url = server.url("a.jsonl")
    files = find_files([url], [], "c")
    server.knows_ranges = ranges
    server.breaks = [1000, 100_000]
    server.busy = 1
    assert texts(url) == TEXTS * 8000 and not server.breaks and files[0].size == len(JSON_LINES) * 8000


def test_a_server_that_stays_away(server: Server) -> None:
    server.files["a.txt"] = b"text"
    url = server.url("a.txt")
    server.breaks = [1] * 100
    with pytest.raises(EnvironmentFailure, match=re.escape(f"{url} cannot be read: ")) as failure:
        read(url)
    assert "\n" not in str(failure.value)
    server.busy = 100
    with pytest.raises(EnvironmentFailure, match=re.escape(f"corpus c: {url} cannot be read: ") + ".*503"):
        read(url)


def test_nothing_there_or_nothing_for_us(server: Server) -> None:
    server.files["secret.txt"] = b""
    for name, told in (("gone.txt", r"does not exist \(404\)"), ("secret.txt", r"may not be read \(403\)")):
        with pytest.raises(BadCorpus, match=f"corpus c: {re.escape(server.url(name))} {told}"):
            read(server.url(name))


def test_nobody_at_the_address_or_no_answer(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.txt"
        with pytest.raises(EnvironmentFailure, match=re.escape(f"{url} cannot be read: ")):
            read(url)
    with pytest.raises(EnvironmentFailure, match=re.escape(f"{url} cannot be read: ") + ".*Refused"):
        read(url)


def test_http_cannot_list() -> None:
    with pytest.raises(BadConfig, match=r"corpus c: http://127\.0\.0\.1/\*\.txt: an http server cannot list"):
        find_files(["http://127.0.0.1/*.txt"], [], "c")


@pytest.mark.parametrize(("url", "package"), [("s3://bucket/*.jsonl", "s3fs"), ("gs://bucket/a", "gcsfs")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, url: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadConfig, match=rf"corpus c: {re.escape(url)}: .*pip install '{package}'"):
        find_files([url], [], "c")


def test_an_unknown_scheme() -> None:
    with pytest.raises(BadConfig, match=r"ftp:// is not known; http://, https://, s3://, gs://, memory:// are"):
        find_files(["ftp://host/a"], [], "c")


def test_globs_and_folders_of_a_store_that_lists() -> None:
    store = fsspec.filesystem("memory")
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "deep/.hidden/d.txt", "e.png"):
        store.pipe(f"/globs/{name}", name.encode())
    try:
        assert texts("memory://globs/*.txt") == ["a.txt", "b.txt"]
        assert texts("memory://globs/?.txt", "memory://globs/a.txt") == ["a.txt", "b.txt"]
        assert texts("memory://globs/deep/**/c.txt") == ["deep/er/c.txt"]
        documents, tally = read("memory://globs", exclude=["*/b.txt"])
        assert [document.text for document in documents] == ["a.txt", "deep/er/c.txt"]
        assert documents[0].source == "memory://globs/a.txt" and dropped(tally) == {"read: not text": 1}
        with pytest.raises(BadCorpus, match="no file matches memory://globs/x"):
            find_files(["memory://globs/x*"], [], "c")
        with pytest.raises(BadCorpus, match="memory://globs/nothing does not exist"):
            find_files(["memory://globs/nothing"], [], "c")
    finally:
        store.rm("/globs", recursive=True)
