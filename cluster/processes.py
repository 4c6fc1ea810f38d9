"""One node's ranks as processes: started, watched, their output kept, ended. Knows nothing of Ray."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from cluster.children import Child, start_process
from cluster.diagnosis import RankState
from cluster.evidence import Evidence
from cluster.memory import OomKills
from cluster.output import LineTail
from cluster.stacks import Target, collect
from cluster.standby import Standby

TICK_SECONDS = 0.1
"""How often processes and output are looked at: a dead rank is known after this long at most."""


@dataclass(frozen=True)
class Launch:
    """What one node needs to start its ranks of one attempt."""

    command: list[str]
    working_directory: str  # empty: where the agent itself runs
    environment: dict[str, str]
    log_directory: str
    attempt: int
    node: str
    node_rank: int
    ranks_per_node: int
    gpus: int  # reserved on this node, for all of its ranks
    world_size: int
    master_address: str
    master_port: int
    heartbeat_seconds: float
    start_seconds: float
    standby: bool | None = False  # whether to keep one: None where memory allows, True always


@dataclass(frozen=True)
class Report:
    """What has become of a node's ranks, and rank 0's complete lines of output since the last report."""

    states: list[RankState]
    output: list[str]
    done: bool  # every rank has ended and its output has been handed over
    notes: list[str] = field(default_factory=list)  # what else there is to say of the node


@dataclass
class _Rank:
    number: int
    log: BinaryIO
    heartbeat: Path
    process: Child
    beat_at: float  # time.monotonic() of the last change of the heartbeat file: immune to clock jumps
    beat_stamp: tuple[int, int] | None = None  # (inode, mtime) then
    step: int | None = None
    exit_code: int | None = None
    exit_order: int = 0
    stale: bool = False
    asked_to_stop: bool = False
    out_of_memory: str | None = None


class RankGroup:
    """The ranks of one node during one attempt.

    A thread of its own starts and watches them. It must be that thread: Linux delivers PR_SET_PDEATHSIG when the
    *thread* that forked ends, so that the ranks also die should the watching ever fail.
    """

    def __init__(self, launch: Launch, heartbeat_directory: Path, standby: Standby | None = None) -> None:
        self.warm = 0  # ranks that were forked from `standby`
        self._launch = launch
        self._standby = standby
        self._heartbeats = heartbeat_directory
        self._ranks: list[_Rank] = []
        self._output: deque[str] = deque()
        self._tail: LineTail | None = None
        self._news = threading.Condition()
        self._has_news = False
        self._done = False
        self._started = threading.Event()
        self._error: BaseException | None = None
        self._ended = 0
        self._oom_kills = OomKills()
        self._standbys_killed = 0 if standby is None else standby.killed
        self._thread = threading.Thread(target=self._run, name="ranks", daemon=True)

    def start(self) -> list[int]:
        """Start the ranks; returns their process ids. Raises OSError when a log or a process cannot be made."""
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            raise self._error
        return [rank.process.pid for rank in self._ranks]

    def report(self, timeout: float) -> Report:
        """Wait up to `timeout` seconds for a rank to end or fall silent or rank 0 to print; then tell all."""
        with self._news:
            self._news.wait_for(lambda: self._has_news or self._done, timeout)
            self._has_news = False
            output = list(self._output)
            self._output.clear()
            if self._error is not None:
                raise self._error
            return Report(self.states(), output, self._done)

    def states(self) -> list[RankState]:
        """Every rank of this node as it is now."""
        now = time.monotonic()
        return [
            RankState(
                rank=rank.number,
                node=self._launch.node,
                pid=rank.process.pid,
                exit_code=rank.exit_code,
                exit_order=rank.exit_order,
                process_state=_process_state(rank.process.pid) if rank.exit_code is None else "",
                step=rank.step,
                silent_seconds=now - rank.beat_at,
                stale=rank.stale,
                asked_to_stop=rank.asked_to_stop,
                out_of_memory=rank.out_of_memory,
            )
            for rank in self._ranks
        ]

    def evidence(self, seconds: float) -> dict[int, Evidence]:
        """Where each running rank is, and what it waits for, by its number; within `seconds`."""
        running = [state for state in self.states() if state.exit_code is None]
        targets = [Target(s.rank, s.pid, stacks_file(self._heartbeats, s.rank), s.stopped) for s in running]
        return collect(targets, seconds)

    def signal(self, number: int) -> None:
        """Send a signal to each rank itself: its children (data readers, compilers) are the rank's to end."""
        for rank in self._ranks:
            if rank.exit_code is None:
                # Not Popen.send_signal, which would reap a rank behind the watching thread's back.
                with suppress(ProcessLookupError):
                    os.kill(rank.process.pid, number)

    def stop(self, grace_seconds: float) -> None:
        """SIGTERM, then SIGKILL to whatever is left of the ranks and their children; returns when all are gone."""
        self.signal(signal.SIGTERM)
        self._thread.join(grace_seconds)
        for rank in self._ranks:
            if rank.exit_code is None:
                _kill_group(rank.process.pid)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._spawn()
        except BaseException as error:  # noqa: BLE001 handed to the caller of start()
            self._error = error
            for rank in self._ranks:
                _kill_group(rank.process.pid)
                rank.process.wait()
            return
        finally:
            self._started.set()
        try:
            self._watch()
        except BaseException as error:  # noqa: BLE001 handed to the caller of report()
            self._error = error
            for rank in self._ranks:
                if rank.exit_code is None:
                    _kill_group(rank.process.pid)  # those that were forked from a standby outlive this thread
        with self._news:
            self._done = True
            self._news.notify_all()

    def _spawn(self) -> None:
        launch = self._launch
        Path(launch.log_directory).mkdir(parents=True, exist_ok=True)
        self._heartbeats.mkdir(parents=True, exist_ok=True)
        for local_rank in range(launch.ranks_per_node):
            number = launch.node_rank * launch.ranks_per_node + local_rank
            heartbeat = self._heartbeats / f"rank-{number:05d}"
            heartbeat.unlink(missing_ok=True)
            stacks_file(self._heartbeats, number).unlink(missing_ok=True)
            log = (Path(launch.log_directory) / f"rank-{number:05d}.log").open("ab", buffering=0)
            with suppress(OSError):  # a full disk takes no more of what ranks say, which they can do without
                log.write(_header(launch, number))
            if number == 0:
                self._tail = LineTail(Path(log.name), log.tell())
            process = self._start_rank(rank_environment(launch, local_rank, heartbeat), log)
            self._ranks.append(_Rank(number, log, heartbeat, process, time.monotonic()))

    def _start_rank(self, environment: Mapping[str, str], log: BinaryIO) -> Child:
        if self._standby is not None and self.warm == len(self._ranks):  # it has not failed a rank before this one
            child = self._standby.start_rank(environment, log)
            if child is not None:
                self.warm += 1
                return child
        return start_process(self._launch.command, self._launch.working_directory, environment, log)

    def _watch(self) -> None:
        live = list(self._ranks)
        standby = self._standby
        while live:
            if standby is not None and all(rank.beat_stamp is not None for rank in self._ranks):
                standby.prepare([rank.process.pid for rank in self._ranks])
                standby = None
            self._look_at_memory()
            for rank in live:
                self._look_at(rank)
            live = [rank for rank in live if rank.exit_code is None]
            self._collect_output(final=False)
            if live:
                time.sleep(TICK_SECONDS)  # several children and their heartbeat files: no one event covers both
        while not self._collect_output(final=True):
            pass
        for rank in self._ranks:
            with suppress(OSError):
                rank.log.close()
        if self._tail is not None:
            with suppress(OSError):
                self._tail.close()

    def _look_at(self, rank: _Rank) -> None:
        ended = os.waitid(os.P_PID, rank.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        self._read_heartbeat(rank)
        if ended:
            # Before the rank is reaped, while its number cannot belong to anyone else.
            _kill_group(rank.process.pid)
            exit_code = rank.process.wait()
            with self._news:
                rank.exit_order = self._ended
                rank.exit_code = exit_code
                rank.out_of_memory = self._oom_kills.of_one_killed() if exit_code == -signal.SIGKILL else None
                rank.stale = False
                self._ended += 1
                self._tell()
            return
        limit = self._launch.start_seconds if rank.beat_stamp is None else self._launch.heartbeat_seconds
        stale = time.monotonic() - rank.beat_at > limit
        if stale != rank.stale:
            with self._news:
                rank.stale = stale
                self._tell()

    def _look_at_memory(self) -> None:
        self._oom_kills.look()
        if self._standby is not None and self._standbys_killed < self._standby.killed:
            self._standbys_killed += 1
            self._oom_kills.of_one_killed()  # if it was one, it does not explain a rank's end

    def _read_heartbeat(self, rank: _Rank) -> None:
        try:
            status = rank.heartbeat.stat()
            stamp = (status.st_ino, status.st_mtime_ns)
            if stamp == rank.beat_stamp:
                return
            text = rank.heartbeat.read_text()
        except FileNotFoundError:
            return
        rank.beat_stamp = stamp
        rank.beat_at = time.monotonic()
        step, _, more = text.partition("\n")
        if step.strip().isdigit():
            rank.step = max(int(step), -1 if rank.step is None else rank.step)
        rank.asked_to_stop = bool(more.strip())

    def _collect_output(self, *, final: bool) -> bool:
        """Move new lines of rank 0 to the outbox; True when none are left, or the log cannot be read."""
        if self._tail is None:
            return True
        if not final and len(self._output) >= LineTail.LIMIT:  # a slow reader: the file keeps what the outbox does not
            return False
        try:
            lines = self._tail.read(final=final)
        except OSError:  # a file system that is away for a while is no reason to end ranks: the next tick tries again
            return True
        if lines:
            with self._news:
                self._output.extend(lines)
                self._tell()
        return not lines

    def _tell(self) -> None:
        self._has_news = True
        self._news.notify_all()


def node_environment(launch: Launch) -> dict[str, str]:
    """What the environments of this node's ranks have in common: the agent's without Ray's own variables, the launch's.

    The same for all attempts on the same node with as many ranks on it.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # Ray has set its own idea of this in the agent; the launch's environment below may know better.
    environment["OMP_NUM_THREADS"] = str(max(1, usable_cores() // launch.ranks_per_node))
    if launch.gpus == 0:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # else Ray has set it to the reserved ones, shared by the node's ranks
    environment.update(launch.environment)
    environment["TRESTLE_NODE"] = launch.node
    return environment


def rank_environment(launch: Launch, local_rank: int, heartbeat: Path) -> dict[str, str]:
    """The environment of one rank: that of its node, and the rank's coordinates."""
    environment = node_environment(launch)
    environment.update(
        RANK=str(launch.node_rank * launch.ranks_per_node + local_rank),
        LOCAL_RANK=str(local_rank),
        WORLD_SIZE=str(launch.world_size),
        LOCAL_WORLD_SIZE=str(launch.ranks_per_node),
        NODE_RANK=str(launch.node_rank),
        MASTER_ADDR=launch.master_address,
        MASTER_PORT=str(launch.master_port),
        TRESTLE_ATTEMPT=str(launch.attempt),
        TRESTLE_HEARTBEAT=str(heartbeat),
        TRESTLE_STACKS=str(stacks_file(heartbeat.parent, launch.node_rank * launch.ranks_per_node + local_rank)),
    )
    return environment


def stacks_file(directory: Path, rank: int) -> Path:
    """Where a rank leaves its stacks when it is asked: beside its heartbeat."""
    return directory / f"stacks-{rank:05d}"


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the cgroup's quota where there is one."""
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _header(launch: Launch, rank: int) -> bytes:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return f"===== attempt {launch.attempt}, {now}, rank {rank} of {launch.world_size}, node {launch.node}\n".encode()


def _process_state(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("State:"):
                return line.split()[1]
    return ""


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
