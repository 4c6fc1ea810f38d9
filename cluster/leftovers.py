"""Find and end a whole tree of processes, safe against reused process numbers."""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process, told from a later one of the same number by its start time (clock ticks since boot)."""

    pid: int
    started: int


def tree_of(text: str) -> set[Process]:
    """This process's descendants whose command line contains `text`, with all of their descendants."""
    children: dict[int, list[Process]] = defaultdict(list)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            status = _status(int(entry))
            if status is not None:
                children[status[0]].append(status[1])
    found: set[Process] = set()

    def walk(pid: int, inside: bool) -> None:
        for child in children[pid]:
            belongs = inside or text in _command_line(child.pid)
            if belongs:
                found.add(child)
            walk(child.pid, belongs)

    walk(os.getpid(), False)
    return found


def alive(process: Process) -> bool:
    """True while the process runs; a zombie has ended."""
    status = _status(process.pid)
    return status is not None and status[1] == process and status[2] not in ("Z", "X")


def end_all(processes: Iterable[Process], patience_until: float) -> None:
    """Wait until `patience_until` (monotonic) for the processes to end by themselves, then kill them.

    Returns when all are gone; a process that the kernel holds uninterruptibly is left after 10 more seconds.
    """
    left = {process for process in processes if alive(process)}
    while left and time.monotonic() < patience_until + 10.0:
        if time.monotonic() >= patience_until:
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.02)
        left = {process for process in left if alive(process)}


def _status(pid: int) -> tuple[int, Process, str] | None:
    """(parent, process, state letter) from /proc/PID/stat, whose second field may hold spaces and parentheses."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[1]), Process(pid, int(fields[19])), fields[0]


def _command_line(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""
