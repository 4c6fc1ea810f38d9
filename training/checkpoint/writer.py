"""Writing a checkpoint beside the training, by many ranks that only share a file system.

`save` copies the pieces to host memory (the stall) and returns; a thread does the rest. Each rank writes its two files
into `.step-00000200.partial/` and drops a note there when they are durable. Rank 0's thread waits for all notes, writes
the manifest and renames the directory to `step-00000200`: that rename is the moment from which the checkpoint exists.
Collectives are out of the question in a thread: they would interleave with the training's own.
"""

from __future__ import annotations

import concurrent.futures
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.checkpoint import format as fmt
from training.checkpoint import retention as keeping
from training.checkpoint.errors import SaveFailed
from training.checkpoint.meeting import Abandoned, Meeting
from training.checkpoint.pieces import Piece
from training.checkpoint.retention import Retention

_log = logging.getLogger("trestle.checkpoint")
_MARGIN_SECONDS = 60.0
_MANY_RANKS = 16


@dataclass(frozen=True)
class _Job:
    """One save of this rank: everything the thread needs, in host memory."""

    step: int
    serial: int  # the how-many-eth save of this writer: the same on every rank, and never the same twice
    head: bytes
    data: memoryview
    record: bytes
    state: dict[str, Any]


class CheckpointWriter:
    """Writes the checkpoints of one rank into `directory` (a run's `checkpoints` folder).

    Rank 0 clears what a killed process left there, so all ranks need a barrier between constructing their writers
    and the first `save`; after that every rank calls `save` for the same steps in the same order. `deadline_seconds`
    bounds how long a rank waits for the others' files. The host copy is allocated once and reused. Raises SaveFailed.
    """

    def __init__(
        self,
        directory: Path,
        rank: int,
        world_size: int,
        asynchronous: bool = True,
        retention: Retention | None = None,
        deadline_seconds: float = 600.0,
    ) -> None:
        self.directory = Path(directory)
        self.rank = rank
        self.world_size = world_size
        self.asynchronous = asynchronous
        self.retention = retention or Retention()
        self.deadline_seconds = deadline_seconds
        self._arena = torch.empty(0, dtype=torch.uint8)
        self._pending: concurrent.futures.Future[None] | None = None
        self._serial = 0
        self._abandoned = Abandoned()
        #: How-many-eth save is the last one in place, 0 before the first of this writer.
        self.in_place = 0
        #: The last save that has failed on this rank: how-many-eth, and why.
        self.failed: tuple[int, str] | None = None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if rank == 0:
                keeping.sweep(self.directory)
        except OSError as error:
            raise SaveFailed(f"checkpoints cannot be written to {self.directory}: {error.strerror}") from error
        #: The name of a checkpoint that retention must leave alone for now.
        self.in_use: Callable[[], str | None] = lambda: None
        existing = fmt.candidates(self.directory)
        #: Step of the newest checkpoint whose manifest is in place, None before the first.
        self.last_verified: int | None = fmt.step_of(existing[0].name) if existing else None

    def save(
        self,
        step: int,
        pieces: Iterable[tuple[Piece, torch.Tensor]],
        state: dict[str, Any],
        rank_state: dict[str, Any] | None = None,
    ) -> float:
        """Store this rank's pieces (fp32 or bf16, piece.numel elements each) as part of the checkpoint of `step`.

        Rank 0's `state` (JSON) goes into the manifest, with `validation_loss` in it if the best is to be kept; each
        rank's own `rank_state` (JSON) into its record. Waits for the save before this one; if that one failed, its
        error is raised when this one is under way. Returns the stall in seconds: then the tensors may change again.
        Raises SaveFailed, and ValueError on malformed pieces.
        """
        begun = time.perf_counter()
        earlier: SaveFailed | None = None
        try:
            self.wait()
        except SaveFailed as failure:  # the others count on this rank now, whenever they learnt of the failure
            earlier = failure
        job = self._snapshot(step, list(pieces), state, rank_state)
        abandoned = self._abandoned = Abandoned()
        self._pending = _in_thread(lambda: self._write(job, abandoned), f"checkpoint-{step}")
        if not self.asynchronous:
            self.wait()
        if earlier is not None:
            raise earlier
        return time.perf_counter() - begun

    def wait(self, waited: float = 0.0) -> None:
        """Return when the last save is in place on all ranks. Raises its error, once; or that storage has not answered
        long after all ranks should have given up, of which time so many seconds have been `waited` already.
        """
        seconds = self.longest_seconds
        if not self.settles(max(0.0, seconds - waited)):
            raise SaveFailed(
                f"the checkpoint before has not been written for {seconds:.0f} s: {self.directory} does not answer; "
                f"{self._fallback()}"
            )
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    @property
    def longest_seconds(self) -> float:
        """A rank gives up after twice the deadline, unless storage holds its thread in a call that never returns."""
        return 2 * self.deadline_seconds + _MARGIN_SECONDS

    def drop(self, serial: int, reason: str) -> bool:
        """Another rank has given up the save of this number: wait for nobody any more. False if it is not the last."""
        if serial != self._serial:
            return False
        self._abandoned.tell(reason)
        return True

    def settles(self, seconds: float) -> bool:
        """Whether the last save comes to its end, good or bad, within so many seconds."""
        return self._pending is None or bool(concurrent.futures.wait([self._pending], seconds).done)

    def check(self) -> None:
        """Raise the error of the last save if it has failed already; never waits."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def went_back(self, step: int | None) -> None:
        """The run has left newer checkpoints than that of `step` behind (they have been set aside)."""
        self.last_verified = step

    # ── in the caller's thread ─────────────────────────────────────────────────────────────────────────────────────

    def _snapshot(
        self,
        step: int,
        pieces: list[tuple[Piece, torch.Tensor]],
        state: dict[str, Any],
        rank_state: dict[str, Any] | None,
    ) -> _Job:
        pieces = [(piece, tensor) for piece, tensor in pieces if piece.numel > 0]  # a rank may own nothing of a tensor
        for piece, tensor in pieces:
            if tensor.numel() != piece.numel:
                raise ValueError(
                    f"{piece.kind} of {piece.name}: {tensor.numel()} elements for a piece of {piece.numel}"
                )
        head, entries = fmt.plan_file([(piece, tensor.dtype) for piece, tensor in pieces])
        size = sum(entry.nbytes for entry in entries)
        devices = {tensor.device for _, tensor in pieces if tensor.is_cuda}
        arena = self._reserve(size, pinned=bool(devices))
        for entry, (_, tensor) in zip(entries, pieces, strict=True):
            start = entry.offset - len(head)
            host = arena[start : start + entry.nbytes].view(entry.dtype)
            host.copy_(tensor.detach().reshape(-1), non_blocking=tensor.is_cuda)
        for device in devices:
            torch.cuda.synchronize(device)
        self._serial += 1
        return _Job(
            step=step,
            serial=self._serial,
            head=head,
            data=arena[:size].numpy().data,
            record=fmt.record(entries, rank_state),
            # Through JSON and back: the thread must not see the caller's later changes, and a value that JSON
            # does not know is the caller's mistake now rather than the thread's later.
            state=json.loads(json.dumps(state)),
        )

    def _reserve(self, size: int, pinned: bool) -> torch.Tensor:
        if self._arena.numel() < size or (pinned and not self._arena.is_pinned()):
            self._arena = torch.empty(0, dtype=torch.uint8)  # free the old one before asking for the new one
            self._arena = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        return self._arena

    # ── in the writer's thread ─────────────────────────────────────────────────────────────────────────────────────

    def _write(self, job: _Job, abandoned: Abandoned) -> None:
        deadline = self.deadline_seconds
        meeting = Meeting(self.directory, self.rank, self.world_size, job.step, job.serial, deadline, abandoned)
        try:
            meeting.open()
            about = {
                fmt.data_file(self.rank): fmt.write_hashed(
                    meeting.partial / fmt.data_file(self.rank), job.head, job.data
                ),
                fmt.record_file(self.rank): fmt.write_hashed(meeting.partial / fmt.record_file(self.rank), job.record),
            }
            meeting.report(about)
            if self.rank == 0:
                self._publish(job, meeting)
            else:
                meeting.await_publication(job.record)
        except OSError as error:
            what = f"{error.strerror or error} ({error.filename or meeting.partial})"
            # A folder that goes while it is made was there and is not.
            if self.rank > 0 and isinstance(
                error, FileNotFoundError | FileExistsError
            ):  # rank 0 took the folder away: why?
                what = meeting.refused() or what
            self.failed = job.serial, what
            meeting.give_up(what)
            raise SaveFailed(
                f"the checkpoint of step {job.step} was not written: {what}; {self._fallback()}"
            ) from error
        except SaveFailed as error:
            self.failed = job.serial, str(error)
            meeting.give_up(str(error))
            raise SaveFailed(
                f"the checkpoint of step {job.step} was not written: {error}; {self._fallback()}"
            ) from None
        self.last_verified = job.step
        self.in_place = job.serial
        if self.rank == 0:
            self._retain(job.step)

    def _fallback(self) -> str:
        return "there is none before it" if self.last_verified is None else f"step {self.last_verified} is still good"

    def _publish(self, job: _Job, meeting: Meeting) -> None:
        files = meeting.await_all()
        manifest = {
            "format_version": fmt.FORMAT_VERSION,
            "step": job.step,
            "world_size": self.world_size,
            "files": files,
            "state": job.state,
        }
        raw = (json.dumps(manifest, indent=1) + "\n").encode()
        fmt.write_hashed(meeting.partial / fmt.MANIFEST, raw)
        fmt.write_hashed(meeting.partial / fmt.MANIFEST_DIGEST, fmt.digest_line(raw))
        if self.world_size >= _MANY_RANKS:
            self._write_records(meeting)
        meeting.clear_notes()
        fmt.fsync_directory(meeting.partial)
        replaced = meeting.final.with_name(f".{meeting.final.name}{keeping.REPLACED}")
        if meeting.final.exists():  # a run that went back reaches the same step again
            meeting.final.rename(replaced)
        meeting.partial.rename(meeting.final)
        fmt.fsync_directory(self.directory)
        if replaced.exists():
            keeping.remove(replaced)

    def _write_records(self, meeting: Meeting) -> None:
        """All records in one file: a thousand ranks that load would ask the storage for a million small ones."""
        records = [(meeting.partial / fmt.record_file(rank)).read_bytes() for rank in range(self.world_size)]
        fmt.write_hashed(meeting.partial / fmt.RECORDS, *records)

    def _retain(self, step: int) -> None:
        try:
            spared = {fmt.step_directory(step), self.in_use()}
            for path in keeping.apply(self.retention, self.directory, spared):
                _log.info("retention: deleted %s", path.name)
        except OSError as error:  # the new one is in place on all ranks, and the next save tries again
            _log.warning("step %d is in place, but an older checkpoint could not be removed: %s", step, error)


def _in_thread(work: Callable[[], None], name: str) -> concurrent.futures.Future[None]:
    """Like a pool of one, but a daemon: a rank that dies of something else must not linger for the deadline's sake."""
    future: concurrent.futures.Future[None] = concurrent.futures.Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - nothing is swallowed: wait() raises it in the caller's thread
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
