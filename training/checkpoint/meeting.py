"""How ranks agree, through files alone, that a checkpoint is complete."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.checkpoint import format as fmt
from training.checkpoint import retention as keeping
from training.checkpoint.errors import SaveFailed


class Abandoned:
    """Whether another rank has given a save up, told by other means than files: those may not have taken the note."""

    def __init__(self) -> None:
        self._told = threading.Event()
        self.reason: str | None = None

    def tell(self, reason: str) -> None:
        self.reason = reason
        self._told.set()

    def wait(self, seconds: float) -> str | None:
        """The reason as soon as it is told, None if it is not within so many seconds."""
        return self.reason if self._told.wait(seconds) else None


class Meeting:
    """How ranks that share only a directory agree that a checkpoint is complete, or that it will not be.

    `.done` notes in the partial directory say that a rank's files are durable, `.failed` notes that they will not come;
    rank 0 answers by renaming the directory, or by a `.failed` file beside it. Notes carry the save's serial number, so
    that those of an earlier failed save of the same step mean nothing.
    """

    def __init__(
        self,
        directory: Path,
        rank: int,
        world_size: int,
        step: int,
        serial: int,
        deadline_seconds: float,
        abandoned: Abandoned | None = None,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.serial = serial
        self.deadline_seconds = deadline_seconds
        self._abandoned = abandoned or Abandoned()
        self.final = directory / fmt.step_directory(step)
        self.partial = directory / f".{self.final.name}{keeping.PARTIAL}"
        self.refusal = directory / f".{self.final.name}{keeping.FAILED}"

    def open(self) -> None:
        """Raises SaveFailed if rank 0 has given up before this rank has begun."""
        if self.rank == 0:
            self.refusal.unlink(missing_ok=True)
        elif (reason := self.refused()) is not None:
            raise SaveFailed(reason)
        self.partial.mkdir(exist_ok=True)

    def report(self, about: dict[str, Any]) -> None:
        """Say that this rank's files are on disk."""
        self._note(self.partial / f".rank-{self.rank:05d}.done", {"files": about})

    def await_all(self) -> dict[str, dict[str, Any]]:
        """Rank 0: size and sha256 of every rank's files, when all are on disk. Raises SaveFailed."""
        done: dict[int, dict[str, Any]] = {}

        def arrived() -> bool:
            present = set(os.listdir(self.partial))
            for rank in range(self.world_size):
                failed = f".rank-{rank:05d}.failed"
                if failed in present and (note := self._own(self.partial / failed)) is not None:
                    raise SaveFailed(f"rank {rank}: {note['reason']}")
                name = f".rank-{rank:05d}.done"
                if rank not in done and name in present and (note := self._own(self.partial / name)) is not None:
                    done[rank] = note["files"]
            return len(done) == self.world_size

        if not self._poll(arrived, self.deadline_seconds):
            absent = [str(rank) for rank in range(self.world_size) if rank not in done]
            some = ", ".join(absent[:8]) + (", …" if len(absent) > 8 else "")
            raise SaveFailed(f"after {self.deadline_seconds:g} s the files of rank {some} are still missing")
        files = {name: about for rank in sorted(done) for name, about in done[rank].items()}
        for name, about in files.items():
            if (self.partial / name).stat().st_size != about["size"]:
                raise SaveFailed(f"{name} is not as long as its rank wrote it")
        return files

    def await_publication(self, record: bytes) -> None:
        """Other ranks: return when the checkpoint with this rank's `record` in it has its name. Raises SaveFailed."""

        def published() -> bool:
            reason = self.refused()
            if reason is not None:
                raise SaveFailed(reason)
            if self.partial.exists():
                return False
            with contextlib.suppress(FileNotFoundError):
                return (self.final / fmt.record_file(self.rank)).read_bytes() == record
            return False

        # Twice the time that rank 0 takes to give up: its answer, one or the other, is then the same for all.
        if not self._poll(published, 2 * self.deadline_seconds):
            raise SaveFailed(f"rank 0 did not complete it within {2 * self.deadline_seconds:g} s")

    def refused(self) -> str | None:
        """Why rank 0 has given this save up, None if it has not."""
        refusal = self._own(self.refusal)
        return None if refusal is None else str(refusal["reason"])

    def clear_notes(self) -> None:
        for note in self.partial.glob(".rank-*"):
            note.unlink()

    def give_up(self, reason: str) -> None:
        """Leave nothing behind and tell the others: best effort, as the disk may be gone and the error is under way."""
        with contextlib.suppress(OSError):
            (self.partial / fmt.data_file(self.rank)).unlink(missing_ok=True)  # first make room for the note
        if self.rank == 0:
            self._refuse(reason)
            return
        with contextlib.suppress(OSError):
            abandoned = self._abandoned.reason is not None
            if not abandoned and self.refused() is None:
                self._note(self.partial / f".rank-{self.rank:05d}.failed", {"reason": reason})
            if (
                abandoned or self.refused() is not None
            ):  # nobody reads notes any more, and rank 0 may have cleared up before this
                self._clear_up()

    def _refuse(self, reason: str) -> None:
        """Rank 0's answer, without which the others would wait for their deadline: it must find room."""
        try:
            self._note(self.refusal, {"reason": reason})  # before the folder goes: who misses it finds the reason
        except OSError:
            shutil.rmtree(self.partial, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._note(self.refusal, {"reason": reason})
        shutil.rmtree(self.partial, ignore_errors=True)

    def _clear_up(self) -> None:
        """Remove what this rank has left in the partial directory, and the directory if it was the last to do so."""
        for name in (fmt.data_file(self.rank), fmt.record_file(self.rank)):
            (self.partial / name).unlink(missing_ok=True)
        for note in self.partial.glob(f".rank-{self.rank:05d}.*"):
            note.unlink(missing_ok=True)
        self.partial.rmdir()

    def _note(self, path: Path, content: dict[str, Any]) -> None:
        draft = path.with_suffix(path.suffix + f"-{self.rank}-draft")
        try:
            fmt.write_hashed(draft, json.dumps({"serial": self.serial, **content}).encode())
            draft.rename(path)  # a reader sees all of it or nothing
        except OSError:
            draft.unlink(missing_ok=True)
            raise

    def _own(self, path: Path) -> dict[str, Any] | None:
        """The note at `path` if it belongs to this save."""
        try:
            note = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        return note if note["serial"] == self.serial else None

    def _poll(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether `condition` came true within so many seconds. Raises SaveFailed if another rank has given up.

        Polled because nothing else works: ranks on other machines share files only, and network file systems send no
        change notifications. The interval grows from 5 ms to half a second, so that a thousand ranks do not load them.
        """
        deadline = time.monotonic() + seconds
        interval = 0.005
        while not condition():
            if time.monotonic() > deadline:
                return False
            if (reason := self._abandoned.wait(interval)) is not None:
                raise SaveFailed(reason)
            interval = min(interval * 1.5, 0.5)
        return True
