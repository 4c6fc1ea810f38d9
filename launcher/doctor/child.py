"""Runs one check as a process of its own with a deadline, so that whatever hangs or crashes in it harms no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from cluster.children import DIE_WITH_PARENT


class ChildFailed(Exception):
    """A check did not come to its end: one line says why."""


def start(module: str, *words: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`python -m module words…` in a process group of its own, which ends with this process."""
    command = [sys.executable, "-I", "-S", str(DIE_WITH_PARENT), str(os.getpid()), sys.executable, "-m", module, *words]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore", **(environment or {})},
    )


def results(children: Sequence[subprocess.Popen[str]], deadline: float) -> list[list[dict[str, Any]]]:
    """The JSON objects that each child printed, a line each. Raises ChildFailed for the first that failed.

    All are gone afterwards, with their children.
    """
    try:
        told = []
        for child in children:
            try:
                output, errors = child.communicate(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise ChildFailed("it had not finished in time") from None
            if child.returncode != 0:
                raise ChildFailed(_last_line(errors, child.returncode))
            told.append([json.loads(line) for line in output.splitlines() if line.startswith("{")])
        return told
    finally:
        for child in children:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.kill()
            child.communicate()


def _last_line(errors: str, code: int) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"exit code {code}"
