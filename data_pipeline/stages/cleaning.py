"""The stage that gives all texts one form of Unicode, line ends and white space."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from data_pipeline.documents import Document, Tally

_LINE_END = re.compile("\r\n?|\u2028|\u2029|\x85")
#: C0 and C1 controls but tab and newline, and the byte order mark.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
_ASCII_CONTROLS = bytes(code for code in range(128) if _CONTROLS.match(chr(code)))
_BLANK_RUN = re.compile("\n{4,}")


def clean(documents: Iterable[Document], tally: Tally) -> Iterator[Document]:
    """Cleans each text; drops what is binary (has a NUL) or empty."""
    for document in documents:
        if "\0" in document.text:
            tally.drop("clean: binary", document.source, document.text)
            continue
        text = clean_text(document.text)
        if text:
            document.text = text
            yield document
        else:
            tally.drop("clean: empty", document.source, document.text)


def clean_text(text: str) -> str:
    """Unicode NFC, \\n line ends, no control characters, no trailing whitespace, at most two blank lines together.

    Ends with one newline, or is empty.
    """
    if text.isascii():  # the same, several times as fast
        text = text.replace("\r\n", "\n").replace("\r", "\n").encode().translate(None, _ASCII_CONTROLS).decode()
    else:
        # NFC comes after the controls, which may stand between a letter and its accent.
        text = unicodedata.normalize("NFC", _CONTROLS.sub("", _LINE_END.sub("\n", text)))
    text = "\n".join([line.rstrip() for line in text.split("\n")]).strip("\n")
    return _BLANK_RUN.sub("\n\n\n", text) + "\n" if text else ""
