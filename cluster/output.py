"""Follow a growing log file line by line."""

from __future__ import annotations

import os
from pathlib import Path


class LineTail:
    """The complete lines that are appended to a file from `offset` on.

    Ranks write straight into their log, so that no reader, however slow or dead, can ever block them; whoever wants to
    see the output live reads the file.
    """

    LIMIT = 2000  # lines at a time
    CHUNK = 256 * 1024  # bytes at a time
    LONGEST = 64 * 1024  # bytes; a longer line is handed out in parts
    FARTHEST = 16 * 1024 * 1024  # bytes behind; farther back, the reader skips

    def __init__(self, path: Path, offset: int) -> None:
        self._file = path.open("rb", buffering=0)
        self._file.seek(offset)
        self._partial = b""

    def read(self, *, final: bool) -> list[str]:
        """New complete lines, without their ends; with `final`, at the file's end, the unfinished last one too."""
        skipped = self._skip()
        chunk = self._file.read(self.CHUNK)
        *lines, self._partial = (skipped + self._partial + chunk).split(b"\n")
        if self._partial and (len(self._partial) > self.LONGEST or (final and not chunk)):
            lines.append(self._partial)
            self._partial = b""
        return [line.decode("utf-8", errors="replace") for line in lines]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _skip(self) -> bytes:
        behind = os.fstat(self._file.fileno()).st_size - self._file.tell()
        if behind <= self.FARTHEST:
            return b""
        jump = behind - self.CHUNK
        self._file.seek(jump, os.SEEK_CUR)
        self._partial = b""
        return f"[{jump} bytes not shown; they are in {self._file.name}]\n".encode()
