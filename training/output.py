"""What a rank says, when the disk under its log is full: kept until there is room, and never an error."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import Any, TextIO, cast

KEPT_BYTES = 1 << 20
"""Of what waits at most; then the newest is dropped."""


class PatientStream:
    """A text stream that writes whole lines to its file descriptor, and neither raises OSError nor loses a line for it.

    Python's own streams forget what a failed write has not taken.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._descriptor = stream.fileno()
        self._waiting = b""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        with self._lock:
            if len(self._waiting) < KEPT_BYTES:
                self._waiting += text.encode(errors="backslashreplace")
            if text.endswith("\n"):
                self.flush()
        return len(text)

    def flush(self) -> None:
        with self._lock, suppress(OSError):
            while self._waiting:
                self._waiting = self._waiting[os.write(self._descriptor, self._waiting) :]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def speak_patiently() -> None:
    """From here on a full disk under stdout and stderr ends no print, and with it no training."""
    for name in ("stdout", "stderr"):
        with suppress(OSError, AttributeError):  # a stream that is no file, or none at all, is left as it is
            stream = getattr(sys, name)
            if not isinstance(stream, PatientStream):
                stream.flush()
                setattr(sys, name, cast(TextIO, PatientStream(stream)))
