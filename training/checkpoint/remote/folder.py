"""A run's place in a store: which checkpoints are whole there, which go, and the run's files beside them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from training.checkpoint import format as fmt
from training.checkpoint.errors import DamagedCheckpoint, UnknownFormat
from training.checkpoint.reader import Checkpoint
from training.checkpoint.remote.source import RemoteSource
from training.checkpoint.remote.store import PART_BYTES, RemoteStore, StorageUnreachable
from training.checkpoint.retention import Retention
from training.checkpoint.source import NotAFile

CHECKPOINTS = "checkpoints"
NEEDED = ("recipe.yaml", "tokenizer.model", "merges.txt", "merges.txt.gz")
"""Without these (of the tokenizers, one) a run cannot go on elsewhere."""
HISTORY = ("events.jsonl", "metrics.jsonl", "goodput.json")
LARGEST_FILE = 64 << 20
"""Bytes of a run's file that is still copied along."""


class RemoteFolder:
    """`URL/NAME`. Raises what RemoteStore raises."""

    def __init__(self, location: str, name: str, part_bytes: int = PART_BYTES) -> None:
        self.store = RemoteStore(f"{location.rstrip('/')}/{name}", part_bytes)
        self._losses: dict[str, float | None] = {}

    @property
    def location(self) -> str:
        return self.store.location

    def path(self, name: str) -> str:
        """A checkpoint's URL."""
        return self.store.path(CHECKPOINTS, name)

    def names(self) -> list[str]:
        """What lies there under a checkpoint's name, newest first, whole or not."""
        found = [name for name in self.store.names(CHECKPOINTS) if fmt.step_of(name) is not None]
        return sorted(found, key=lambda name: fmt.step_of(name) or 0, reverse=True)

    def is_whole(self, name: str) -> bool:
        """Whether all of it has arrived: its digest comes last."""
        return self.store.exists(place(name, fmt.MANIFEST_DIGEST))

    def newest(self, leaving_out: set[str]) -> str | None:
        """The newest whole checkpoint but some; None if there is none."""
        return next((name for name in self.names() if name not in leaving_out and self.is_whole(name)), None)

    def digest(self, name: str) -> bytes | None:
        """What its manifest's digest says, None if it is not whole."""
        try:
            return self.store.read(place(name, fmt.MANIFEST_DIGEST))
        except FileNotFoundError:
            return None
        except NotAFile:
            return b""  # no digest, but in the place of one: whoever opens the checkpoint finds it damaged

    def source(self, name: str) -> RemoteSource:
        return RemoteSource(self.store, f"{CHECKPOINTS}/{name}")

    def withdraw(self, name: str) -> None:
        """Let it be a checkpoint no more: before its files change, or because the run has left it behind."""
        self.store.remove(place(name, fmt.MANIFEST_DIGEST))
        self.store.remove(place(name, fmt.MANIFEST))
        self._losses.pop(name, None)

    def retain(self, retention: Retention, newest: str) -> list[str]:
        """Delete what `retention` does not keep, and what has never become whole and is older than `newest`."""
        names = self.names()
        whole = [name for name in names if self.is_whole(name)]
        for name in whole:
            if name not in self._losses:
                with contextlib.suppress(DamagedCheckpoint, UnknownFormat):
                    self._losses[name] = Checkpoint(self.source(name)).state.get("validation_loss")
        steps = {fmt.step_of(name) or 0: name for name in whole if name in self._losses}
        surplus = [steps[step] for step in retention.surplus({s: self._losses[name] for s, name in steps.items()})]
        limit = fmt.step_of(newest) or 0
        surplus += [name for name in names if name not in whole and (fmt.step_of(name) or 0) < limit]
        surplus = [name for name in surplus if name != newest]
        for name in surplus:
            self.withdraw(name)
            self.store.remove_folder(f"{CHECKPOINTS}/{name}")
        return surplus

    def put_run_files(self, folder: Path) -> None:
        """Copy what a run needs to go on elsewhere, and its history as far as it is not too large. Raises OSError."""
        for name in (*NEEDED, *HISTORY):
            path = folder / name
            if path.is_file() and path.stat().st_size <= LARGEST_FILE:
                self.store.write(name, path.read_bytes())

    def run_files(self) -> dict[str, bytes]:
        """What `put_run_files` has left there. Raises StorageUnreachable for a file that is too large to be one."""
        found = {}
        for name in (*NEEDED, *HISTORY):
            with contextlib.suppress(FileNotFoundError):
                size = self.store.size(name)
                if size > LARGEST_FILE:
                    raise StorageUnreachable(f"{self.store.path(name)} has {size} bytes: that is no file of a run")
                found[name] = self.store.read(name)
        return found


def place(checkpoint: str, file: str) -> str:
    """A checkpoint's file in the folder."""
    return f"{CHECKPOINTS}/{checkpoint}/{file}"


def is_checkpoint_url(location: str) -> bool:
    """Whether this is the URL of a checkpoint, by its form."""
    return "://" in location and fmt.step_of(location.rstrip("/").rpartition("/")[2]) is not None
