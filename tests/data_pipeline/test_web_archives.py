"""WARC → documents: which records are pages, in which encodings."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import pytest
import zstandard
from fastwarc.stream_io import BrotliWriter
from fastwarc.warc import WarcRecord, WarcRecordType

from data_pipeline.sources.decompression import Damaged
from data_pipeline.sources.http_content import decoded_content
from data_pipeline.sources.text import web_text
from tests.data_pipeline.crawl import pydoc_pages
from tests.data_pipeline.reading import dropped, named, read

PAGE = "<html><body><p>Ein Text über vieles, 漢字</p></body></html>"


def record(
    block: bytes,
    uri: str = "https://x/",
    kind: WarcRecordType = WarcRecordType.response,
    content_type: str = "application/http; msgtype=response",
) -> bytes:
    made = WarcRecord()
    made.init_headers(kind, b"6d9b8a3e-0000-4000-8000-000000000000")
    if uri:
        made.headers["WARC-Target-URI"] = uri
    made.headers["Content-Type"] = content_type
    made.set_bytes_content(block)
    stream = io.BytesIO()
    made.write(stream)
    return stream.getvalue()


def response(body: bytes, content_type: str = "text/html", status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def brotli(content: bytes) -> bytes:
    stream = io.BytesIO()
    writer = BrotliWriter(stream)
    writer.write(content)
    writer.close()
    return stream.getvalue()


def raw_deflate(content: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(content) + compressor.flush()


def chunked(content: bytes, size: int = 20) -> bytes:
    chunks = [content[start : start + size] for start in range(0, len(content), size)]
    return b"".join(b"%x;name=value\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


@pytest.mark.parametrize("suffix", ["warc", "warc.gz", "warc.zst"])
def test_pages_come_with_their_address(tmp_path: Path, suffix: str) -> None:
    pages = list(pydoc_pages(["json", "argparse", "string", "textwrap"]))
    records = [record(response(page.html.encode(), "text/html; charset=utf-8"), page.url) for page in pages]
    content = {
        "warc": b"".join(records),
        "warc.gz": b"".join(map(gzip.compress, records)),
        "warc.zst": b"".join(map(zstandard.compress, records)),
    }[suffix]
    (tmp_path / f"a.{suffix}").write_bytes(content)
    documents, tally = read(tmp_path)
    assert [(document.text, document.source) for document in documents] == [(page.html, page.url) for page in pages]
    assert all(document.html for document in documents) and not tally.dropped


def test_what_is_no_page_is_counted(tmp_path: Path) -> None:
    page = PAGE.encode()
    records = [
        record(response(page), "https://x/page"),
        record(response(page, "Application/XHTML+XML"), "https://x/xhtml"),
        record(response("plain, ümlaut".encode(), "text/plain"), "https://x/plain"),
        record(response(page, status="404 Not Found"), "https://x/404"),
        record(response(b"\x89PNG", "image/png"), "https://x/png"),
        record(b"no http at all", "https://x/garbage"),
        record(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", "https://x/long-header"),
        record(b"\x00\x01", "dns:x", content_type="text/dns"),
        record(response(b""), "https://x/empty"),
        record(response(b" " * (2 << 20)), "https://x/long"),
        record(b"GET / HTTP/1.1\r\n\r\n", kind=WarcRecordType.request, content_type="application/http"),
        record(b"a: b\r\n", kind=WarcRecordType.metadata, content_type="application/warc-fields"),
        record(b"of a WET", "https://x/wet", WarcRecordType.conversion, "text/plain"),
        record(page, "<https://x/resource>", WarcRecordType.resource, "text/html; charset=utf-8"),
        record(response(page), ""),
    ]
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    documents, tally = read(tmp_path, max_document_bytes=4000)
    assert [(document.source, document.html) for document in documents[:-1]] == [
        ("https://x/page", True),
        ("https://x/xhtml", True),
        ("https://x/plain", False),
        ("https://x/wet", False),
        ("https://x/resource", True),
    ]
    assert documents[2].text == "plain, ümlaut"
    assert documents[-1].source == f"{tmp_path}/a.warc:{sum(map(len, records[:-1]))}"
    assert named(tally, "read: not an HTML response") == [
        "dns:x",
        *(f"https://x/{name}" for name in ("404", "garbage", "long-header", "png")),
    ]
    assert dropped(tally) == {
        "read: not an HTML response": 5,
        "read: empty": 1,
        "read: longer than max_document_bytes": 1,
    }


def test_bodies_are_decoded(tmp_path: Path) -> None:
    page = PAGE.encode()
    bodies = {
        "gzip": response(gzip.compress(page), Content_Encoding="gzip"),
        "x-gzip": response(gzip.compress(page), Content_Encoding="X-Gzip"),
        "deflate": response(zlib.compress(page), Content_Encoding="deflate"),
        "raw deflate": response(raw_deflate(page), Content_Encoding="deflate"),
        "br": response(brotli(page), Content_Encoding="br"),
        "zstd": response(zstandard.compress(page), Content_Encoding="zstd"),
        "identity": response(page, Content_Encoding="identity"),
        "chunked": response(chunked(page), Transfer_Encoding="chunked"),
        "both": response(chunked(gzip.compress(page)), Transfer_Encoding="chunked", Content_Encoding="gzip"),
        "decoded by the crawler": response(page, Content_Encoding="gzip", Transfer_Encoding="chunked"),
        "zstd, decoded by the crawler": response(page, Content_Encoding="zstd"),
        "bare line feeds": response(page).replace(b"\r\n", b"\n"),
    }
    broken = {
        "cut gzip": response(gzip.compress(page)[:-9], Content_Encoding="gzip"),
        "cut br": response(brotli(page)[:-9], Content_Encoding="br"),
        "broken deflate": response(b"\x78\x9c" + b"\xff" * 50, Content_Encoding="deflate"),
        "cut chunks": response(chunked(page)[:-30], Transfer_Encoding="chunked"),
        "no end of chunks": response(chunked(page)[:-5], Transfer_Encoding="chunked"),
        "broken chunks": response(b"2\r\nab\r\nzz\r\n", Transfer_Encoding="chunked"),
        "unknown": response(page, Content_Encoding="compress"),
        "several": response(gzip.compress(gzip.compress(page)), Content_Encoding="gzip, gzip"),
    }
    bomb = response(gzip.compress(bytes(1 << 22)), Content_Encoding="gzip")
    blocks = {**bodies, **broken, "bomb": bomb}
    (tmp_path / "a.warc.gz").write_bytes(b"".join(gzip.compress(record(b, name)) for name, b in blocks.items()))
    documents, tally = read(tmp_path, max_document_bytes=1 << 20)
    assert {document.source: document.text for document in documents} == dict.fromkeys(bodies, PAGE)
    assert named(tally, "read: HTTP content that cannot be decoded") == sorted(broken)
    assert named(tally, "read: longer than max_document_bytes") == ["bomb"]
    assert len(tally.dropped) == 2


def test_the_encoding_of_a_page() -> None:
    german, japanese = "<p>Größe und Maß, Äpfel und Öl", "<p>日本語の文章です。これは長い文章です。"
    # what a byte order mark, the server, the page itself, or nobody says
    assert web_text(german.encode("utf-8-sig"), "latin1") == german
    assert web_text("\ufeff".encode("utf-16-le") + german.encode("utf-16-le")) == german
    assert web_text(japanese.encode("shift_jis"), "Shift_JIS") == japanese
    assert web_text(('<meta charset="euc-jp">' + japanese).encode("euc_jp")).endswith(japanese)
    assert web_text(german.encode()) == german
    assert web_text(japanese.encode("shift_jis")) == japanese
    assert web_text(german.encode("cp1252")) == german
    # what is said, but not so
    assert web_text(german.encode(), "iso-8859-1") == german
    assert web_text(german.encode("cp1252"), "utf-8") == german
    assert web_text(('<meta charset="utf-16">' + german).encode()).endswith(german)
    for nonsense in ("zlib_codec", "rot13", "nothing", "", "'utf-8'"):
        assert web_text(german.encode(), nonsense) == german
    assert web_text(b"") == "" and web_text(b"\xef\xbb\xbf") == ""


def test_an_html_file_in_an_old_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes('<meta charset="koi8-r"><p>Привет'.encode("koi8-r"))
    (document,), _ = read(tmp_path)
    assert document.text.endswith("<p>Привет")


@pytest.mark.parametrize("length", [b"-10", b"+5", b"0x10", b"1_0", b""])
def test_chunk_lengths_that_are_no_plain_numbers_are_damage(length: bytes) -> None:
    body = b"28\r\n" + b"a" * 40 + b"\r\n" + length + b"\r\n" + b"x" * 50
    with pytest.raises(Damaged):
        list(decoded_content(body, "chunked", ""))
