"""A file that is only appended to, and that may be out of reach for a while: what it does not take is kept."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

KEPT_BYTES = 64 << 20
"""What waits in memory for a disk at most; then the oldest goes."""


class PatientFile:
    """Appends pieces of bytes, each whole or not at all; the file's only writer. Used from one thread."""

    def __init__(self, path: Path, kept_bytes: int = KEPT_BYTES) -> None:
        self.path = Path(path)
        self.lost = 0
        """Pieces that were given up, as more waited than `kept_bytes`."""
        self._kept_bytes = kept_bytes
        self._waiting: deque[bytes] = deque()
        self._size = 0

    @property
    def waiting(self) -> int:
        """Pieces that the file has not taken yet."""
        return len(self._waiting)

    def add(self, piece: bytes) -> None:
        """Put a piece behind those that wait; `write` takes them to the file."""
        self._waiting.append(piece)
        self._size += len(piece)
        while self._size > self._kept_bytes and len(self._waiting) > 1:
            self._size -= len(self._waiting.popleft())
            self.lost += 1

    def keep(self, wanted: Callable[[bytes], bool]) -> None:
        """Of the pieces that wait, forget those that are not wanted any more."""
        self._waiting = deque(piece for piece in self._waiting if wanted(piece))
        self._size = sum(map(len, self._waiting))

    def write(self) -> None:
        """Append all that waits. Raises OSError, and then the file is as before and everything waits on."""
        if not self._waiting:
            return
        data = b"".join(self._waiting)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            try:
                _write_all(descriptor, data)
            except OSError:
                with suppress(OSError):  # a pipe or a device has no size
                    os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)  # some network file systems tell only here that there is no room
        self._waiting.clear()
        self._size = 0


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
