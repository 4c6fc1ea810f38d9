"""Find and end whole groups of processes, safe against reused process numbers.

Also a program, which `Guard` starts: `python -I -S leftovers.py DIRECTORY`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ORDERLY = b"done"


class Process(NamedTuple):
    """A process, told from a later one of the same number by its start time (clock ticks since boot)."""

    pid: int
    started: int


class Guard:
    """Removes `directory` when told to, or when this process has died, after ending all that have a file open there.

    So that a driver killed by SIGKILL leaves nothing behind either: Ray's per-node helpers would go on for minutes
    looking for their dead head. While this process lives it ends nobody, since its own children may hold such a file.
    """

    def __init__(self, directory: Path) -> None:
        command = [sys.executable, "-I", "-S", __file__, str(directory)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._process.wait()  # the program goes on as nobody's child: a dying Ray worker kills its own

    def close(self) -> None:
        """Remove the directory and wait until that is done."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError), self._process.stdin as told:
            told.write(ORDERLY)
        with self._process.stdout as end:
            end.read()


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


def zombies() -> set[Process]:
    """This process's children that have ended and have not been waited for."""
    found: set[Process] = set()
    for entry in os.listdir("/proc"):
        status = _status(int(entry)) if entry.isdigit() else None
        if status is not None and status[0] == os.getpid() and status[2] == "Z":
            found.add(status[1])
    return found


def holders_of(directory: str) -> set[Process]:
    """This user's processes, other than this one, that have a file below `directory` open."""
    found: set[Process] = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid() and _holds(int(entry), directory.rstrip("/") + "/"):
            status = _status(int(entry))
            if status is not None:
                found.add(status[1])
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
        time.sleep(0.02)  # they are not our children: there is no event of their end to wait for
        left = {process for process in left if alive(process)}


def _holds(pid: int, prefix: str) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if os.readlink(descriptor.path).startswith(prefix):
                    return True
    return False


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


if __name__ == "__main__":
    if os.fork():
        os._exit(0)
    if sys.stdin.buffer.read() != ORDERLY:
        end_all(holders_of(sys.argv[1]), time.monotonic())
        end_all(holders_of(sys.argv[1]), time.monotonic())  # what the first ones were just starting
    shutil.rmtree(sys.argv[1], ignore_errors=True)
