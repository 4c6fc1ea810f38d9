"""The actor that stands for one node: starts its ranks, tells the supervisor about them, ends them."""

from __future__ import annotations

import os
import random
import shutil
import socket
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

from cluster.diagnosis import RankState
from cluster.errors import CommandNotFound, LaunchError
from cluster.evidence import Evidence
from cluster.leftovers import Guard
from cluster.processes import Launch, RankGroup, Report, node_environment
from cluster.standby import Standby

PORTS = range(20000, 30000)
"""Where to look for a free port: above Ray's worker ports, below what Linux hands to outgoing connections (32768 up),
so that nothing takes it between the choice and rank 0's bind."""


class Agent:
    """Runs as a Ray actor with several threads, since `report` waits while `signal` or `stop` must get through."""

    THREADS = 4

    def __init__(self, scratch: str | None) -> None:
        """`scratch`: where heartbeat files live, already private to the run; None: make and remove a place here."""
        self._scratch = Path(scratch or tempfile.mkdtemp(prefix="trestle-", dir=_memory_or_temporary()))
        self._guard = None if scratch is not None else Guard(self._scratch)
        self._group: RankGroup | None = None
        self._standby: Standby | None = None
        self._lock = threading.Lock()

    def free_port(self) -> int:
        """A TCP port that nothing listens on at this node."""
        for port in random.sample(PORTS, len(PORTS)):
            with socket.socket() as probe:
                try:
                    probe.bind(("", port))
                except OSError:
                    continue
                return port
        raise LaunchError(f"no free port from {PORTS.start} to {PORTS.stop - 1} on this node")

    def start(self, launch: Launch) -> int:
        """Start this node's ranks; returns how many came from a standby. Raises `CommandNotFound`, `LaunchError`."""
        with self._lock:
            if self._group is not None:
                self._group.stop(0.0)
            launch = replace(launch, working_directory=launch.working_directory or os.getcwd())
            if not Path(launch.working_directory).is_dir():
                raise CommandNotFound(f"{launch.working_directory} is not a directory on node {launch.node}")
            path = launch.environment.get("PATH", os.environ.get("PATH"))
            if shutil.which(launch.command[0], path=path) is None:
                raise CommandNotFound(f"{launch.command[0]} is not a program on node {launch.node}")
            self._keep_standby(launch)
            self._group = RankGroup(launch, self._scratch / f"attempt-{launch.attempt}", self._standby)
            try:
                self._group.start()
            except OSError as error:
                self._group = None  # it has none to stop or to tell of
                raise LaunchError(f"node {launch.node} could not start its ranks: {error}") from error
            return self._group.warm

    def stand_by(self, launch: Launch) -> None:
        """Be ready to start ranks like those of `launch` on this node, which has none of them."""
        with self._lock:
            self._keep_standby(launch)
            if self._standby is not None:
                self._standby.prepare([])

    def report(self, timeout: float) -> Report:
        """As `RankGroup.report`."""
        report = self._running().report(timeout)
        return report if self._standby is None else replace(report, notes=self._standby.take_notes())

    def states(self) -> list[RankState]:
        """As `RankGroup.states`."""
        return self._running().states()

    def evidence(self, seconds: float) -> dict[int, Evidence]:
        """As `RankGroup.evidence`."""
        return self._running().evidence(seconds)

    def signal(self, number: int) -> None:
        """As `RankGroup.signal`."""
        self._running().signal(number)

    def stop(self, grace_seconds: float) -> Report:
        """End the ranks, if any were started, and tell how they ended, with the last of rank 0's output."""
        group = self._group
        if group is None:
            return Report([], [], True)
        group.stop(grace_seconds)
        return group.report(0.0)

    def close(self) -> None:
        """Kill what still runs and leave nothing on the disk."""
        with self._lock:
            if self._group is not None:
                self._group.stop(0.0)
                self._group = None
            if self._standby is not None:
                self._standby.close()
                self._standby = None
            if self._guard is not None:
                self._guard.close()
                self._guard = None

    def _keep_standby(self, launch: Launch) -> None:
        """One that serves `launch`: it must have imported with the very environment that the ranks will have."""
        serves = (launch.command, launch.working_directory, node_environment(launch))
        if self._standby is not None and (launch.standby is False or self._standby.serves != serves):
            self._standby.close()
            self._standby = None
        if self._standby is None and launch.standby is not False:
            directory = self._scratch / "standby"
            self._standby = Standby(*serves, directory, insist=launch.standby is True)

    def _running(self) -> RankGroup:
        if self._group is None:
            raise LaunchError("no ranks have been started on this node")
        return self._group


def _memory_or_temporary() -> str:
    """A directory that a full disk cannot block."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
