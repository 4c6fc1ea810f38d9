"""Stages: generators from documents to kept documents, each naming a reason for what it drops."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from data_pipeline.readers import Document, Funnel

#: Documents in, kept documents out.
StageFunction = Callable[[Iterable[Document], Funnel], Iterator[Document]]

_LINE_END = re.compile("\r\n?|\u2028|\u2029|\x85")
#: C0 and C1 controls but tab and newline, and the byte order mark.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
_BLANK_RUN = re.compile("\n{4,}")


def clean_text(text: str) -> str:
    """Unicode NFC, \\n line ends, no control characters, no trailing whitespace, at most two blank lines together.

    Ends with one newline, or is empty.
    """
    # NFC comes after the controls, which may stand between a letter and its accent.
    text = unicodedata.normalize("NFC", _CONTROLS.sub("", _LINE_END.sub("\n", text)))
    text = "\n".join([line.rstrip() for line in text.split("\n")]).strip("\n")
    return _BLANK_RUN.sub("\n\n\n", text) + "\n" if text else ""


def clean(documents: Iterable[Document], funnel: Funnel) -> Iterator[Document]:
    """Cleans each text; drops what is binary (has a NUL) or empty."""
    for document in documents:
        if "\0" in document.text:
            funnel.drop("binary", document.source)
            continue
        text = clean_text(document.text)
        if text:
            yield Document(text, document.source)
        else:
            funnel.drop("empty", document.source)


class Deduplicator:
    """Exact deduplication across all the documents it is shown; the first copy stays.

    Documents are equal if they differ in letter case and whitespace alone. Keeps 16 bytes a document (and Python's
    overhead of about 80).
    """

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def __call__(self, documents: Iterable[Document], funnel: Funnel) -> Iterator[Document]:
        """The stage: documents in, those not seen before out."""
        for document in documents:
            key = text_key(document.text)
            if key in self._seen:
                funnel.drop("duplicate", document.source)
                continue
            self._seen.add(key)
            yield document


def text_key(text: str) -> bytes:
    """16-byte hash of the text without regard to case and whitespace."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()


def is_held_out(text: str, fraction: float) -> bool:
    """Whether the text belongs to the held-out part: a function of its hash, so equal texts are on one side."""
    return int.from_bytes(text_key(text)[:8], "big") < int(fraction * 2**64)
