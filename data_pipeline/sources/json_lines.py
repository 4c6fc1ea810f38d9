"""JSON lines: a document a line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator

from data_pipeline.documents import Document, Tally
from data_pipeline.sources.text import INVALID, TOO_LONG, ReadingOptions, document

BROKEN = "read: broken JSON"


def json_lines(pieces: Iterable[bytes], source: str, tally: Tally, options: ReadingOptions) -> Iterator[Document]:
    """A document for each line that holds an object with a text; blank lines are none."""
    for number, line in enumerate(lines(pieces, options.max_document_bytes), start=1):
        place = f"{source}:{number}"
        if number == 1 and line is not None:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line is None:
            tally.drop(TOO_LONG, place)
        elif line.strip():
            yield from json_document(line, place, tally, options)


def json_document(content: bytes, source: str, tally: Tally, options: ReadingOptions) -> Iterator[Document]:
    """The text of a JSON object as a document."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        tally.drop(INVALID, source)
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        tally.drop(BROKEN, source, text)
        return
    found = value.get(options.text_field) if isinstance(value, dict) else None
    if isinstance(found, str):
        yield from document(found, source, tally)
    else:
        tally.drop(without_field(options), source, text)


def without_field(options: ReadingOptions) -> str:
    """The reason for documents without a text."""
    return f'read: without a text field "{options.text_field}"'


def lines(pieces: Iterable[bytes], limit: int) -> Iterator[bytes | None]:
    """The lines, without their ends; None for one of more than `limit` bytes, which is never held whole."""
    parts: list[bytes] = []
    size = 0
    for piece in pieces:
        first, *others = piece.split(b"\n")
        size += len(first)
        if size <= limit:
            parts.append(first)
        else:
            parts.clear()
        if others:
            yield b"".join(parts) if size <= limit else None
            for line in others[:-1]:
                yield line if len(line) <= limit else None
            parts, size = [others[-1]], len(others[-1])
    if size:
        yield b"".join(parts) if size <= limit else None
