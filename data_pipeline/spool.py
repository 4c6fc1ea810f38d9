"""Kept documents on disk between the stages, so that a corpus is read, cleaned and deduplicated once."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

_LENGTH = struct.Struct("<q")


class Spool:
    """A file of texts, each behind its length. Written once, read as often as needed, in constant memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.documents = 0
        self.bytes = 0
        self._file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115  (closed by close)

    def append(self, text: str) -> None:
        """Adds a text."""
        content = text.encode()
        self._file.write(_LENGTH.pack(len(content)))
        self._file.write(content)
        self.documents += 1
        self.bytes += len(content)

    def __iter__(self) -> Iterator[str]:
        """The texts, in order; the spool is closed for writing."""
        self.close()
        with open(self.path, "rb", buffering=1 << 20) as file:
            while header := file.read(_LENGTH.size):
                yield file.read(_LENGTH.unpack(header)[0]).decode()

    def close(self) -> None:
        """Ends the writing."""
        self._file.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
