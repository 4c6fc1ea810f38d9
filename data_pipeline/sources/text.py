"""Text and HTML files, a document each; and the ways from bytes to text that the other readers share."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from data_pipeline.documents import Document, Tally

TOO_LONG = "read: longer than max_document_bytes"
INVALID = "read: invalid UTF-8"
EMPTY = "read: empty"

#: Byte order marks. That of UTF-32 is none of a web page's.
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


@dataclass(frozen=True)
class ReadingOptions:
    """What the readers need to know. text_field: the field with the text, in JSON, JSON lines and parquet."""

    text_field: str
    max_document_bytes: int


def text_file(pieces: Iterable[bytes], source: str, tally: Tally, options: ReadingOptions) -> Iterator[Document]:
    """The file as one document."""
    content = whole(pieces, options.max_document_bytes)
    if content is None:
        tally.drop(TOO_LONG, source)
    else:
        yield from text_document(content, source, tally)


def html_file(pieces: Iterable[bytes], source: str, tally: Tally, options: ReadingOptions) -> Iterator[Document]:
    """The page as one document, still as HTML."""
    content = whole(pieces, options.max_document_bytes)
    if content is None:
        tally.drop(TOO_LONG, source)
    else:
        yield from html_document(content, source, tally)


def text_document(content: bytes, source: str, tally: Tally) -> Iterator[Document]:
    """A document of UTF-8 text, if it is that."""
    try:
        yield from document(content.decode("utf-8"), source, tally)
    except UnicodeDecodeError:
        tally.drop(INVALID, source)


def html_document(content: bytes, source: str, tally: Tally, charset: str | None = None) -> Iterator[Document]:
    """A document of HTML in any encoding. charset: what the server said."""
    yield from document(web_text(content, charset), source, tally, html=True)


def document(text: str, source: str, tally: Tally, html: bool = False) -> Iterator[Document]:
    """A document, unless it is empty or has a lone surrogate, which JSON can spell."""
    if not text:
        tally.drop(EMPTY, source)
    elif not is_utf8(text):
        tally.drop(INVALID, source)
    else:
        yield Document(text, source, html=html)


def whole(pieces: Iterable[bytes], limit: int) -> bytes | None:
    """All the pieces together. None as soon as they are longer than the limit; then the rest is not read."""
    parts, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            return None
        parts.append(piece)
    return b"".join(parts)


def web_text(content: bytes, charset: str | None = None) -> str:
    """The text of what a web server sent, by byte order mark, `charset`, meta element or detection; in this order.

    Bytes that the encoding does not have come out as U+FFFD, if those that are common in its stead do not have them
    either.
    """
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, errors="replace")
    declared = map_encoding_to_html5(charset, fallback_utf8=False) if charset else None
    encoding = declared or detect_encoding(content, from_html_meta=True) or "utf-8"
    if not declared and encoding.startswith("utf-16"):
        encoding = "utf-8"  # who could read the meta element is not reading UTF-16 (HTML standard, 13.2.3.2)
    if encoding == "cp1252":
        # What many servers claim of everything. Text in it is hardly ever valid UTF-8 by chance.
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            pass
    text: str = bytes_to_str(content, encoding, errors="replace")
    return text


def is_utf8(text: str) -> bool:
    """Whether the text has no lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """A name of a file as UTF-8 can hold it: names on disk may be any bytes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
