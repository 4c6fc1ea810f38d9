"""Processes that die with this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from cluster.leftovers import Process, zombies

_OURS: set[int] = set()
"""Process ids of all that is waited for here."""
DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")


class Child(Protocol):
    """A process of which this one is the parent."""

    pid: int

    def wait(self) -> int:
        """Reap it; its exit code as `subprocess` counts them."""


class Adopted:
    """A process that another one has forked, and that has become this one's child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        _OURS.add(pid)

    def wait(self) -> int:
        """As `Child.wait`."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class Orphans:
    """Reaps what a subreaper gets beside its own children: what ranks that have ended leave behind."""

    def __init__(self) -> None:
        self._seen: set[Process] = set()

    def reap(self) -> None:
        """Reap those that had ended at the call before as well: whoever else has started one waits for it meanwhile."""
        ended = {process for process in zombies() if process.pid not in _OURS}
        for process in ended & self._seen:
            with suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
        self._seen = ended


def start_process(
    command: Sequence[str],
    working_directory: str,
    environment: Mapping[str, str],
    log: BinaryIO,
    inherit: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, which dies when the thread that calls this ends.

    `inherit`: file descriptors that it keeps. Raises OSError.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(DIE_WITH_PARENT), str(os.getpid()), *command],
        cwd=working_directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=inherit,
    )
    _OURS.add(process.pid)
    return process
