"""The body of an HTTP response, as archives keep it: chunked, compressed or both (RFC 9110, 9112)."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator

from data_pipeline.sources.decompression import Damaged, decompressed

_PIECE = 1 << 16
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK_LENGTH = re.compile(rb"[0-9A-Fa-f]{1,16}")
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def decoded_content(body: bytes, transfer_encoding: str, content_encoding: str) -> Iterable[bytes]:
    """The body without its encodings, in pieces of bounded size. The arguments are the headers of these names.

    Many crawlers decode a body and keep the header: a body that does not begin as the header says is taken as it is.
    Raises Damaged (at the latest while the pieces are read) for what breaks off, is broken or is in no known encoding.
    """
    if "chunked" in transfer_encoding.lower():
        body = _unchunked(body)
    encodings = [name.strip().lower() for name in content_encoding.split(",")]
    encodings = [name for name in encodings if name not in ("", "identity")]
    if len(encodings) > 1:
        raise Damaged(f"several encodings, {content_encoding}")
    return _decompressed(body, encodings[0]) if encodings else [body]


def _decompressed(body: bytes, encoding: str) -> Iterable[bytes]:
    if encoding in ("gzip", "x-gzip"):
        return decompressed([body], ".gz") if body.startswith(_GZIP_MAGIC) else [body]
    if encoding == "zstd":
        return decompressed([body], ".zst") if body.startswith(_ZSTD_MAGIC) else [body]
    if encoding == "deflate":  # with zlib's header, as it should be, or without
        return decompressed([body], "zlib" if int.from_bytes(body[:2], "big") % 31 == 0 else "deflate")
    if encoding == "br":
        return _brotli(body)
    raise Damaged(f"an unknown encoding, {encoding}")


def _brotli(body: bytes) -> Iterator[bytes]:
    from fastwarc.stream_io import BrotliReader

    reader = BrotliReader(io.BytesIO(body))
    try:
        while piece := reader.read(_PIECE):
            yield piece
    except OSError as error:
        raise Damaged(f"the compressed data are broken: {error}") from error


def _unchunked(body: bytes) -> bytes:
    parts: list[bytes] = []
    start = 0
    while True:
        end = body.find(b"\n", start)
        length = body[start : max(start, end)].partition(b";")[0].strip()
        if not _CHUNK_LENGTH.fullmatch(length):  # int would take a sign too, and go back in the body
            if start == 0:
                return body
            raise Damaged("the chunks are broken")
        size = int(length, 16)
        if size == 0:
            return b"".join(parts)
        if len(body) < end + 1 + size:
            raise Damaged("the chunks break off")
        parts.append(body[end + 1 : end + 1 + size])
        start = body.find(b"\n", end + 1 + size) + 1
        if start == 0:
            raise Damaged("the chunks break off")
