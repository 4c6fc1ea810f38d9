"""A run's checkpoints behind `checkpoint.remote`: offered when they are in place here, asked for when a run resumes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist

from training.checkpoint import Checkpoint, Retention, step_of
from training.checkpoint.format import MANIFEST_DIGEST
from training.checkpoint.remote import RemoteFolder, Uploader
from training.config import CheckpointConfig
from training.errors import RecipeError

HURRIED_SECONDS = 20.0
"""The wait of a run that was asked to stop: a supervisor's grace is a minute, of which saving takes its part."""


class Note(Protocol):
    """Writes an event on rank 0, as far as the disk takes it."""

    def __call__(self, event: str, **details: Any) -> None: ...


class SecondHome:
    """Collective over all ranks where a method says so; the others return at once."""

    def __init__(self, folder: Path, name: str, config: CheckpointConfig, retention: Retention, note: Note) -> None:
        assert config.remote is not None
        self.folder = RemoteFolder(config.remote, name)
        if Path(self.folder.location).absolute() == folder.absolute():
            raise RecipeError(
                f"checkpoint.remote is {config.remote}, where the run's own folder {folder} lies: uploads would "
                "overwrite what they read; set it to null, or to another place"
            )
        self._directory = folder / "checkpoints"
        self._wait_seconds = config.remote_wait_seconds
        self._rank = dist.get_rank()
        self._note = note
        self._uploader = Uploader(self.folder, folder, self._rank, dist.get_world_size(), retention)

    def offer(self, step: int) -> None:
        """The checkpoint of `step` is in place here."""
        self._uploader.offer(step)

    def in_hand(self) -> str | None:
        """The name of the checkpoint that is being uploaded."""
        return self._uploader.in_hand()

    def went_back(self, step: int | None) -> None:
        self._uploader.went_back(step)

    def poll(self) -> None:
        """Tell what has happened since."""
        while not self._uploader.news.empty():
            event, details = self._uploader.news.get()
            if event == "upload_failed":
                _say(
                    f"{details['remote']} does not take the checkpoint: {details['reason']}; trying on, and training on"
                )
            self._note(event, **details)

    def finish(self, beat: Callable[[], None], hurried: bool) -> None:
        """Wait until the newest checkpoint is there, within bounds; say so if it is not. Collective."""
        seconds = min(self._wait_seconds, HURRIED_SECONDS) if hurried else self._wait_seconds
        begun, told = time.monotonic(), False
        while not (settled := self._all_settled()) and not self._over(begun + seconds):
            self.poll()
            if not told and self._rank == 0 and time.monotonic() > begun + 1:
                _say(f"waiting up to {seconds:.0f} s for the last checkpoint to reach {self.folder.location}")
                told = True
            beat()
            time.sleep(0.1)  # the threads that upload are those of other ranks, too: there is no event for them
        self.poll()
        if not settled and self._rank == 0:
            name = self._uploader.waiting or "the last checkpoint"
            _say(
                f"{name} is in {self._directory}, but NOT yet in {self.folder.location}: it will be uploaded when the "
                "run is resumed here; do not delete this folder before"
            )
            reason = f"not there {seconds:.0f} s after the run's end"
            self._note("upload_failed", step=step_of(name), remote=self.folder.location, reason=reason)

    def newest(self, leaving_out: set[str]) -> str | None:
        """The newest whole checkpoint there, but for some and those that the run has left behind here. Raises
        StorageUnreachable.
        """
        left_out = set(leaving_out)
        while (name := self.folder.newest(left_out)) is not None and self._is_abandoned(name):
            left_out.add(name)
        return name

    def lacks(self, local: Path) -> bool:
        """Whether this checkpoint has not arrived there. Raises StorageUnreachable."""
        try:
            return self.folder.digest(local.name) != (local / MANIFEST_DIGEST).read_bytes()
        except OSError:
            return False  # damaged here: the ranks will find out

    def checkpoint(self, name: str) -> Checkpoint:
        """Raises DamagedCheckpoint, StorageUnreachable."""
        return Checkpoint(self.folder.source(name))

    def _is_abandoned(self, name: str) -> bool:
        asides = [path / MANIFEST_DIGEST for path in self._directory.glob(f"{name}.abandoned*")]
        return self.folder.digest(name) in [path.read_bytes() for path in asides if path.is_file()]

    def _all_settled(self) -> bool:
        everyone: list[bool] = [False] * dist.get_world_size()
        dist.all_gather_object(everyone, self._uploader.settled)
        return all(everyone)

    def _over(self, deadline: float) -> bool:
        """By rank 0's clock."""
        answer = [time.monotonic() > deadline]
        dist.broadcast_object_list(answer, src=0)
        return answer[0]


def _say(text: str) -> None:
    print(f"trestle: {text}", flush=True)
