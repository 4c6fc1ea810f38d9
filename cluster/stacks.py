"""The stacks of one node's ranks, and what each says that it waits for: asked of the rank, else read from outside.

A rank that listens (`supervisor.run` says how) answers even while its main thread waits in C++, but not when it has
been stopped by a signal, nor before it listens. py-spy then reads its memory from outside, which Linux allows to root,
to a process with CAP_SYS_PTRACE, and to whoever the rank has named (PR_SET_PTRACER: `die_with_parent` names the agent).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.evidence import Evidence, evidence_of

LONGEST = 100_000
"""Characters of one rank's stacks that are kept."""
TICK_SECONDS = 0.02
ANSWER_SHARE = 0.4
"""The part of the time that ranks have to answer; the rest is for reading those from outside that have not."""


@dataclass(frozen=True)
class Target:
    """A rank to ask: its process, and the file that its environment calls TRESTLE_STACKS."""

    rank: int
    pid: int
    path: Path
    stopped: bool  # by a signal: it cannot answer


@dataclass
class _Asked:
    target: Target
    listens: bool  # to SIGUSR1
    written: int  # length of the stacks file before
    answers: bool  # through its FIFO


def collect(targets: Sequence[Target], seconds: float) -> dict[int, Evidence]:
    """What every rank says and where it stands, within about `seconds`. Never raises, never ends a rank."""
    deadline = time.monotonic() + seconds
    asked = [_ask(target) for target in targets]
    _wait_for_answers(asked, time.monotonic() + ANSWER_SHARE * seconds)
    unanswered = [one.target for one in asked if not _stacks_written(one)]
    outside = _from_outside(unanswered, deadline)
    return {one.target.rank: _evidence(one, outside.get(one.target.rank)) for one in asked}


def _ask(target: Target) -> _Asked:
    answer = Path(f"{target.path}.json")
    with suppress(OSError):
        answer.unlink()  # of an earlier question
    listens = not target.stopped and _catches(target.pid, signal.SIGUSR1)
    asked = _Asked(target, listens, _size(target.path), not target.stopped and _knock(Path(f"{target.path}.ask")))
    if listens:
        with suppress(ProcessLookupError):
            os.kill(target.pid, signal.SIGUSR1)
    return asked


def _wait_for_answers(asked: Sequence[_Asked], deadline: float) -> None:
    """Return when all that can answer have, or at the deadline: files of several processes, no one event covers them.

    Stacks are complete when their file has not grown for a moment: faulthandler writes them line by line.
    """
    grown: dict[int, int] = {}
    while time.monotonic() < deadline:
        sizes = {one.target.rank: _size(one.target.path) for one in asked if one.listens}
        answered = all(Path(f"{one.target.path}.json").exists() for one in asked if one.answers)
        if answered and sizes == grown and all(_stacks_written(one) for one in asked if one.listens):
            return
        grown = sizes
        time.sleep(TICK_SECONDS)  # files that other processes write, until none of them grows: no event tells of that


def _from_outside(targets: Sequence[Target], deadline: float) -> dict[int, tuple[str, str | None] | str]:
    """By rank: (stacks, function of its main thread), or why there are none."""
    if not targets:
        return {}
    program = Path(sys.executable).with_name("py-spy")
    found = str(program) if program.is_file() else shutil.which("py-spy")
    if found is None:
        return {target.rank: "py-spy is not installed" for target in targets}
    with ThreadPoolExecutor(max_workers=8) as pool:
        read = pool.map(lambda target: _spy(found, target.pid, deadline), targets)
        return {target.rank: one for target, one in zip(targets, read, strict=True)}


def _spy(program: str, pid: int, deadline: float) -> tuple[str, str | None] | str:
    # Non-blocking, since py-spy cannot pause what is paused already: a rank that hangs does not change meanwhile.
    command = [program, "dump", "--nonblocking", "--json", "--pid", str(pid)]
    left = deadline - time.monotonic()
    if left <= 0:
        return "no time was left for py-spy"
    try:
        run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=left, check=False)
    except subprocess.TimeoutExpired:
        return f"py-spy had not finished after {left:.1f} s"
    except OSError as error:
        return f"py-spy: {error}"
    if run.returncode == 0:
        with suppress(ValueError, KeyError, TypeError):
            return _threads(json.loads(run.stdout), pid)
    words = run.stderr.decode(errors="replace")
    if "ermission" in words or "EPERM" in words or "not permitted" in words:
        return "py-spy may not read this process: give the node's agent CAP_SYS_PTRACE (docker --cap-add SYS_PTRACE)"
    return f"py-spy: {' '.join(words.split())[:200] or f'exit code {run.returncode}'}"


def _threads(threads: list[dict], pid: int) -> tuple[str, str | None]:
    lines: list[str] = []
    function = None
    for thread in threads:
        frames = thread["frames"]
        lines.append(f"Thread {thread['os_thread_id']} {thread['thread_name'] or ''} (most recent call first):")
        lines += [f'  File "{f["filename"]}", line {f["line"]} in {f["name"]}' for f in frames]
        if thread["os_thread_id"] == pid and frames:
            function = _function(frames[0]["name"], frames[0]["filename"], frames[0]["line"])
    return "\n".join(lines), function


def _evidence(one: _Asked, outside: tuple[str, str | None] | str | None) -> Evidence:
    answer = _read(Path(f"{one.target.path}.json")) if one.answers else ""
    if isinstance(outside, tuple):
        stacks, function = outside
        return evidence_of(answer, stacks[:LONGEST], "read from outside by py-spy", function)
    if outside is not None:
        why = "it is stopped by a signal" if one.target.stopped else "it has not answered"
        return evidence_of(answer, "", f"none: {why}, and {outside}")
    stacks = _read(one.target.path, one.written)
    return evidence_of(answer, stacks, "written by the rank itself", _main_function(stacks))


def _main_function(stacks: str) -> str | None:
    """Where the main thread is, in faulthandler's words: the thread that took the signal, or else the last one."""
    blocks = re.split(r"^(?=(?:Current thread|Thread) 0x)", stacks, flags=re.MULTILINE)
    current = [block for block in blocks if block.startswith("Current thread")] or blocks[-1:]
    found = re.search(r'File "(.*)", line (\d+) in (.*)', current[0]) if current else None
    return _function(found[3], found[1], found[2]) if found else None


def _function(name: str, filename: str, line: object) -> str:
    return f"{name} ({'/'.join(filename.split('/')[-2:])}:{line})"


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, which would end it otherwise."""
    for line in _read(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _knock(fifo: Path) -> bool:
    """Write to a FIFO that somebody reads; False if nobody does."""
    with suppress(OSError):
        descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return stat.S_ISFIFO(os.fstat(descriptor).st_mode) and os.write(descriptor, b"?") == 1
        finally:
            os.close(descriptor)
    return False


def _stacks_written(one: _Asked) -> bool:
    return one.listens and _size(one.target.path) > one.written


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _read(path: Path, start: int = 0) -> str:
    with suppress(OSError), path.open("rb") as file:
        file.seek(start)
        return file.read(LONGEST).decode(errors="replace")
    return ""
