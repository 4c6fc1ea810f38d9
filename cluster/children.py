"""Processes that die with this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

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

    def wait(self) -> int:
        """As `Child.wait`."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


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
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(DIE_WITH_PARENT), str(os.getpid()), *command],
        cwd=working_directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=inherit,
    )
