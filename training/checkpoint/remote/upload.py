"""Uploading beside the training: each rank its share, read back and compared, the manifest last.

One thread a rank, from the first checkpoint on. Rank 0 announces the newest checkpoint that has its name; when every
rank has noted that its files arrived, rank 0 adds manifest and digest. What does not work is tried again, with growing
pauses, until it does or a newer checkpoint is there; the training never waits for any of it.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from pathlib import Path
from typing import Any

from training.checkpoint import format as fmt
from training.checkpoint.errors import DamagedCheckpoint
from training.checkpoint.reader import Checkpoint
from training.checkpoint.remote.folder import RemoteFolder, place
from training.checkpoint.remote.notes import Announcement, Notes
from training.checkpoint.remote.store import StorageUnreachable
from training.checkpoint.retention import Retention

_log = logging.getLogger("trestle.checkpoint")
_TROUBLE = (OSError, StorageUnreachable, DamagedCheckpoint)


class _Dropped(Exception):
    """The checkpoint in hand is not to be uploaded any more: a newer one is there, or the run has gone back."""


class Uploader:
    """Uploads the checkpoints of one rank in `folder`, a run's folder, to `remote`.

    Rank 0 clears the notes of an earlier process: all ranks need a barrier between constructing and the first `offer`.
    `news` are events to be told, on rank 0: ("uploaded", fields), ("upload_failed", fields), the latter once until an
    upload succeeds again.
    """

    def __init__(
        self,
        remote: RemoteFolder,
        folder: Path,
        rank: int,
        world_size: int,
        retention: Retention,
        first_pause: float = 1.0,
        longest_pause: float = 60.0,
    ) -> None:
        self.remote = remote
        self.news: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self._folder = folder
        self._directory = folder / "checkpoints"
        self._rank = rank
        self._world_size = world_size
        self._retention = retention
        self._pauses = first_pause, longest_pause
        self._notes = Notes(self._directory, rank, world_size)
        self._changed = threading.Condition()
        self._offered: str | None = None
        self._settled: str | None = None
        self._handled: Announcement | None = None
        self._generation = 0
        self._left_behind: set[str] = set()
        self._gone_back_to: int | None = None
        self._in_hand: str | None = None
        self._failing = False
        self._thread: threading.Thread | None = None
        if rank == 0:
            self._notes.clear()

    # ── in the caller's thread ─────────────────────────────────────────────────────────────────────────────────────

    def offer(self, step: int) -> None:
        """The checkpoint of `step` is in place here; every rank is told of the same ones. Returns at once."""
        with self._changed:
            self._offered = fmt.step_directory(step)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="checkpoint-upload", daemon=True)
                self._thread.start()

    @property
    def settled(self) -> bool:
        """Whether the newest offer is there: on rank 0 all of it, on another its own share."""
        with self._changed:
            return self._offered == self._settled

    @property
    def waiting(self) -> str | None:
        """The name of the newest checkpoint that is not there yet."""
        with self._changed:
            return None if self._offered == self._settled else self._offered

    def in_hand(self) -> str | None:
        """The name of the checkpoint that is being uploaded: it must not be deleted here meanwhile."""
        return self._in_hand

    def went_back(self, step: int | None) -> None:
        """The run continues from `step` (None: from the start); all newer checkpoints there are withdrawn, also those
        that an earlier process has uploaded.
        """
        with self._changed:
            self._gone_back_to = step or 0 if self._gone_back_to is None else min(step or 0, self._gone_back_to)
            self._offered = self._settled = None
            self._generation += 1
            self._changed.notify_all()

    # ── in the uploader's thread ───────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._offered is not None and self._offered != self._settled)
                generation = self._generation
            announcement: Announcement | None = None
            try:
                announcement = self._announce() if self._rank == 0 else self._await_announcement(generation)
                self._in_hand = announcement.name
                self._bring(announcement, generation)
            except _Dropped:
                continue
            except Exception as error:  # noqa: BLE001 - a defect must not end the only thread that uploads
                self._trouble(f"{type(error).__name__}: {error}", announcement)
                if announcement is not None:
                    self._handled = None  # it is to be tried again, although it has been announced before
                with contextlib.suppress(_Dropped):
                    self._pause(self._pauses[1], generation)
            finally:
                self._in_hand = None

    def _announce(self) -> Announcement:
        """Rank 0: the newest offer; what is there under its name with another content is withdrawn first."""
        pause, longest = self._pauses
        while True:
            with self._changed:
                name, generation = self._offered, self._generation
            if name is None:
                raise _Dropped
            try:
                digest = (self._directory / name / fmt.MANIFEST_DIGEST).read_bytes()
                self._withdraw_left_behind(generation)
                there = self.remote.digest(name)
                if there is not None and there != digest:
                    self.remote.withdraw(name)
                announcement = Announcement(name, digest.decode())
                self._notes.announce(announcement)
            except _TROUBLE as error:
                self._trouble(str(error))
                self._pause(pause, generation)
                pause = min(2 * pause, longest)
            else:
                return announcement

    def _withdraw_left_behind(self, generation: int) -> None:
        with self._changed:
            names, back_to = set(self._left_behind), self._gone_back_to
        if back_to is not None:
            names |= {name for name in self.remote.names() if (fmt.step_of(name) or 0) > back_to}
        for name in names:
            self.remote.withdraw(name)
        with self._changed:
            self._left_behind -= names
            if generation == self._generation:  # else the run has gone back once more, perhaps further
                self._gone_back_to = None

    def _await_announcement(self, generation: int) -> Announcement:
        """Other ranks: what rank 0 announces; polled, as ranks on other machines share files only."""
        interval = 0.02
        while True:
            try:
                found = self._notes.announced()
            except OSError:
                found = None
            with self._changed:
                if generation != self._generation:
                    raise _Dropped
                if found is not None and found != self._handled:
                    return found
                self._changed.wait(interval)
            interval = min(interval * 1.5, 1.0)

    def _bring(self, announcement: Announcement, generation: int) -> None:
        """Upload this rank's share until it is there; rank 0 then waits for the others and completes it."""
        pause, longest = self._pauses
        done: set[str] = set()
        self._handled = announcement
        while True:
            try:
                self._check_own(announcement)
                checkpoint = Checkpoint(self._directory / announcement.name)
                for name in checkpoint.share(self._rank, self._world_size):
                    if name not in done:
                        self._check(generation)
                        self._bring_file(announcement, name, checkpoint.manifest["files"][name])
                        done.add(name)
                self._notes.arrived(announcement)
                if self._rank == 0:
                    self._await_others(announcement, generation)
                    self._complete(announcement, generation)
                break
            except _TROUBLE as error:
                self._trouble(str(error), announcement)
                self._pause(pause, generation)
                pause = min(2 * pause, longest)
                self._drop_if_superseded(announcement)
        with self._changed:
            if generation == self._generation:
                self._settled = announcement.name

    def _bring_file(self, announcement: Announcement, name: str, about: dict[str, Any]) -> None:
        """Copy a file, and read all of it back: no store's own checksum is of the same kind in all stores."""
        there = place(announcement.name, name)
        self.remote.store.upload(self._directory / announcement.name / name, there)
        try:
            size = self.remote.store.size(there)
            found = self.remote.store.sha256(there, size) if size == about["size"] else None
        except FileNotFoundError:
            found = None
        if found != about["sha256"]:
            raise OSError(f"{self.remote.store.path(there)} is not what was uploaded")

    def _await_others(self, announcement: Announcement, generation: int) -> None:
        interval = 0.02
        while True:
            standing = self._notes.standing(announcement)
            if standing.arrived == self._world_size:
                return
            if standing.failing is not None:
                self._tell_failing(announcement.name, standing.failing)
                self._drop_if_superseded(announcement)
            self._pause(interval, generation)
            interval = min(interval * 1.5, 1.0)

    def _complete(self, announcement: Announcement, generation: int) -> None:
        """Rank 0: manifest and digest, then what retention lets go."""
        local = self._directory / announcement.name
        self.remote.put_run_files(self._folder)
        if (local / fmt.RECORDS).is_file():  # not listed, hence not read back: a reader checks what it takes from it
            self.remote.store.upload(local / fmt.RECORDS, place(announcement.name, fmt.RECORDS))
        for name in (fmt.MANIFEST, fmt.MANIFEST_DIGEST):
            content = (local / name).read_bytes()
            self._check(generation)
            self.remote.store.write(place(announcement.name, name), content)
            if self.remote.store.read(place(announcement.name, name)) != content:
                raise OSError(f"{self.remote.path(announcement.name)}/{name} is not what was uploaded")
        with self._changed:
            if generation != self._generation:  # the run went back meanwhile
                self._left_behind.add(announcement.name)
                raise _Dropped
        self._failing = False
        step = fmt.step_of(announcement.name)
        self.news.put(("uploaded", {"step": step, "remote": self.remote.path(announcement.name)}))
        try:
            for name in self.remote.retain(self._retention, announcement.name):
                _log.info("retention: deleted %s", self.remote.path(name))
        except _TROUBLE as error:  # the new one is there, and the next upload tries again
            _log.warning("%s is there, but an older one could not be removed: %s", announcement.name, error)

    # ── waiting and telling ────────────────────────────────────────────────────────────────────────────────────────

    def _check(self, generation: int) -> None:
        with self._changed:
            if generation != self._generation:
                raise _Dropped

    def _pause(self, seconds: float, generation: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: generation != self._generation, seconds)
        self._check(generation)

    def _check_own(self, announcement: Announcement) -> None:
        """What lies here under the announced name may have been replaced: then another announcement follows."""
        digest = (self._directory / announcement.name / fmt.MANIFEST_DIGEST).read_bytes()
        if digest.decode() != announcement.digest:
            raise _Dropped

    def _drop_if_superseded(self, announcement: Announcement) -> None:
        """What has failed makes room for what is newer: on rank 0 a newer offer, elsewhere its announcement."""
        if self._rank == 0:
            with self._changed:
                superseded = self._offered != announcement.name
        else:
            try:
                superseded = self._notes.announced() != announcement
            except OSError:
                superseded = False
        if superseded:
            raise _Dropped

    def _trouble(self, reason: str, announcement: Announcement | None = None) -> None:
        _log.info("upload: %s", reason)
        if self._rank == 0:
            with self._changed:
                name = announcement.name if announcement is not None else self._offered
            self._tell_failing(name, reason)
        elif announcement is not None:
            try:
                self._notes.failing(announcement, reason)
            except OSError as error:
                _log.warning("upload: %s; and rank 0 could not be told: %s", reason, error)

    def _tell_failing(self, name: str | None, reason: str) -> None:
        if not self._failing:
            self._failing = True
            step = None if name is None else fmt.step_of(name)
            self.news.put(("upload_failed", {"step": step, "remote": self.remote.location, "reason": reason}))
