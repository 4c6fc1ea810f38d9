"""events.jsonl: what happened to a run, one JSON object a line, appended by whoever saw it."""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class EventLog:
    """Appends events to a file that other processes append to as well.

    Each event is a single write to a file opened with O_APPEND: lines of several processes of a machine do not mix.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._follows_a_whole_line = False

    def write(self, event: str, **fields: Any) -> dict[str, Any]:
        """Append an event with the time (ISO 8601, UTC) and return it. `fields` is JSON. Raises OSError."""
        entry = {"event": event, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        self._append(entry)
        return entry

    def _append(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            if not self._follows_a_whole_line:
                # The fragment that a crash or a full disk left must not spoil this line. Another process may be writing
                # just now: then an empty line too many comes of it, which readers skip.
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    line = b"\n" + line
            self._follows_a_whole_line = False
            if os.write(descriptor, line) != len(line):
                raise OSError(f"only part of an event could be written to {self.path}: is the disk full?")
            self._follows_a_whole_line = True
        finally:
            os.close(descriptor)


class PatientEventLog(EventLog):
    """An event log for those whose work matters more than its events: a file that cannot be written is told once, and
    its events are kept, with the time at which they happened, until it can be.
    """

    KEPT = 1000
    """Events that wait for the disk at most; then the oldest goes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._waiting: deque[dict[str, Any]] = deque(maxlen=self.KEPT)
        self._told = False

    def _append(self, entry: dict[str, Any]) -> None:
        self._waiting.append(entry)
        self.retry()

    def retry(self) -> bool:
        """Write what waits; whether nothing does any more. Never raises for the disk's sake."""
        try:
            while self._waiting:
                super()._append(self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            if not self._told:
                self._told = True
                why = f"events cannot be written to {self.path}: {error.strerror or error}"
                print(f"trestle: {why}; they are when it is possible again", file=sys.stderr, flush=True)
            return False
        self._told = False
        return True


class EventTail:
    """Reads a growing events file from the beginning on, a few new events at a time."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._position = 0

    def read(self) -> list[dict[str, Any]]:
        """The events appended since the last call, whole lines only; [] if there is no file yet. Raises OSError."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                new = file.read()
        except FileNotFoundError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._position += len(whole)
        return [entry for line in whole.splitlines() if (entry := _parse(line)) is not None]


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events of a file, oldest first."""
    return EventTail(path).read()


def _parse(line: bytes) -> dict[str, Any] | None:
    """The event on a line, None for the fragment that a crash or a full disk left of one."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "event" in entry and "time" in entry else None
