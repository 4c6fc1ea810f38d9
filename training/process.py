"""One rank as a process: its numbers from the environment, its process group, its heartbeat, and the wish to stop.

A rank knows only RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT and, when a supervisor started it,
TRESTLE_ATTEMPT and
TRESTLE_HEARTBEAT; torchrun and Slurm set the first five as well.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from modeling import gloo
from training.errors import TrainingError

RESUME_ME = 75
"""Exit code of a run that was asked to stop and has saved (EX_TEMPFAIL: "try again later")."""


@dataclass(frozen=True)
class RankEnvironment:
    """Who this rank is."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    attempt: int = 0
    heartbeat: Path | None = None
    begun: float = field(default_factory=lambda: _begun())
    """When the process began, or was forked from a standby, by time.monotonic()."""

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> RankEnvironment:
        """From environment variables; without RANK this is a run of one rank. Raises TrainingError when they
        contradict.
        """
        if "RANK" not in environment:
            return cls()
        try:
            rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            read = cls(
                rank=rank,
                world_size=world_size,
                local_rank=int(environment.get("LOCAL_RANK", rank)),
                address=environment["MASTER_ADDR"],
                port=int(environment["MASTER_PORT"]),
                attempt=int(environment.get("TRESTLE_ATTEMPT", environment.get("TORCHELASTIC_RESTART_COUNT", 0))),
                heartbeat=Path(environment["TRESTLE_HEARTBEAT"]) if environment.get("TRESTLE_HEARTBEAT") else None,
            )
        except KeyError as missing:
            raise TrainingError(
                f"RANK is set, but {missing.args[0]} is not; start ranks with trestle train or torchrun"
            ) from None
        except ValueError as error:
            raise TrainingError(f"RANK, WORLD_SIZE, LOCAL_RANK and MASTER_PORT must be numbers: {error}") from None
        if not 0 <= read.rank < read.world_size:
            raise TrainingError(f"RANK {read.rank} is not below WORLD_SIZE {read.world_size}")
        return read


def _begun() -> float:
    now = time.monotonic()
    try:
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # proc(5): field 22
    except (OSError, ValueError, IndexError):
        return now
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    return now - max(0.0, age)


class Heartbeat:
    """Tells whoever watches the rank how far it is, by a file that only this rank writes."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.asked_to_stop = False
        """Whether this very rank got SIGTERM: its node may be going away."""

    def beat(self, step: int) -> None:
        """Progress was made; `step` steps are complete. On a full disk only the file's time says so."""
        if self._path is None:
            return
        draft = self._path.with_name(f"{self._path.name}.draft")
        try:
            draft.write_text(f"{step}\nasked to stop\n" if self.asked_to_stop else f"{step}\n")
            draft.replace(self._path)  # a reader never sees half a number
        except OSError:
            with suppress(OSError):
                os.utime(self._path)


class StopRequest:
    """SIGTERM on any rank: all ranks stop after the same step.

    The rank that is signalled during step k writes k + 2 to the store before it starts step k + 1. No rank gets past
    step k + 1
    without that rank's part in it, so each finds the number when k + 1 is complete, and no collective is spent on
    asking.
    """

    _KEY = "trestle/stop-after"

    def __init__(self, store: Any, heartbeat: Heartbeat) -> None:
        self._store = store
        self._heartbeat = heartbeat
        self._signalled = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, *_: Any) -> None:
        self._signalled = True

    def reached(self, completed_steps: int) -> bool:
        """Whether to stop now that so many steps are complete; the same answer on every rank."""
        if self._signalled:
            self._signalled = False
            self._heartbeat.asked_to_stop = True  # told with the next step, after which all ranks stop
            self._store.compare_set(self._KEY, "", str(completed_steps + 1))
        if not self._store.check([self._KEY]):
            return False
        return completed_steps >= int(self._store.get(self._KEY))


def start_process_group(environment: RankEnvironment, timeout_seconds: float) -> Any:
    """Join the default process group (nccl on GPUs, gloo else) and return its store. Raises TrainingError where ranks
    cannot meet.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(environment.local_rank)
    os.environ.setdefault(
        "LOCAL_RANK", str(environment.local_rank)
    )  # DeepSpeed insists on it, for a single rank as well
    timeout = timedelta(seconds=timeout_seconds)
    store: Any
    if environment.world_size == 1 and environment.port == 0:
        store = dist.HashStore()
    else:
        # torchrun's agent serves the store itself; a second server on its port would fail.
        served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        store = _meeting_point(environment, serve=environment.rank == 0 and not served, timeout=timeout)
    store = dist.PrefixStore(f"attempt-{environment.attempt}", store)
    gloo.share_device()
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=store,
        rank=environment.rank,
        world_size=environment.world_size,
        timeout=timeout,
    )
    return store


def _meeting_point(environment: RankEnvironment, *, serve: bool, timeout: timedelta) -> Any:
    """The store at MASTER_ADDR:MASTER_PORT, served by this rank if asked."""
    address, port = environment.address, environment.port
    if serve:
        _check_free(port)
    try:
        return dist.TCPStore(address, port, environment.world_size, is_master=serve, timeout=timeout)
    except dist.DistError as error:
        what = str(error).splitlines()[0]
        raise TrainingError(
            f"rank {environment.rank} could not meet the others at MASTER_ADDR {address}, MASTER_PORT {port}: {what}"
        ) from error


def _check_free(port: int) -> None:
    """Raise TrainingError if something listens on `port`: torch would say so, too, but in a dozen lines."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise TrainingError(
                f"MASTER_PORT {port} cannot be used on this machine: {error.strerror}; "
                "end what listens there, or choose another port"
            ) from error
