"""`trestle`, torchrun or ranks of their own as processes that a test may hurt; each has a deadline and leaves nothing.

Every process started here, and all that it starts, carries a mark in its environment by which it is found again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.faults.run_files import RunFiles
from training import standby

ROOT = Path(__file__).parents[2]
MARK = "TRESTLE_TEST_MARK"
TRESTLE = [sys.executable, "-m", "launcher"]
WORKER = [sys.executable, "-m", "training.worker"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


class Program:
    """A started command in a session of its own, as in a terminal. `run` is the run's folder that it works in."""

    def __init__(self, command: Sequence[str], where: Path, run: Path, deadline: float, more: dict[str, str]) -> None:
        self.files = RunFiles(run)
        self._mark = uuid.uuid4().hex
        self._until = time.monotonic() + deadline
        self._temporary = Path(tempfile.mkdtemp(prefix="tf-", dir="/tmp"))  # short: Ray's sockets are in it
        self._output = (self._temporary.with_suffix(".out")).open("w+b")
        environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(self._temporary), **more}
        self.process = subprocess.Popen(
            list(command),
            cwd=where,
            env=environment | {MARK: self._mark},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def output(self) -> str:
        return Path(self._output.name).read_text(errors="replace")

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Return as soon as `condition` holds. Polled: what is waited for are files and processes of others."""
        while not condition():
            ended = self.process.poll()
            assert ended is None, f"ended with {ended} before {what}:\n{self.output[-4000:]}"
            assert time.monotonic() < self._until, f"no {what} within the deadline:\n{self.output[-4000:]}"
            time.sleep(0.001)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: self.files.last_step() >= step, f"step {step}")

    def wait_for_event(self, name: str, count: int = 1) -> None:
        self.wait_for(lambda: len(self.files.events(name)) >= count, f"event {count} of {name}")

    def wait_for_ranks(self, count: int) -> dict[int, int]:
        """Process ids by rank, as soon as so many ranks of the newest attempt run."""
        self.wait_for(lambda: len(self.ranks()) == count, f"{count} ranks")
        return self.ranks()

    def ranks(self) -> dict[int, int]:
        """Process ids of the newest attempt, by rank."""
        found: dict[int, dict[int, int]] = {}
        for pid, environment in self._marked():
            if _is_worker(pid):
                if "RANK" in environment:
                    found.setdefault(int(environment.get("TRESTLE_ATTEMPT", 0)), {})[int(environment["RANK"])] = pid
                elif (log := _rank_log(pid)) is not None:  # forked from a standby: its first environment is that one's
                    attempt = int(log.read_text(errors="replace").rpartition("===== attempt ")[2].split(",")[0])
                    found.setdefault(attempt, {})[int(log.stem.removeprefix("rank-"))] = pid
        return found[max(found)] if found else {}

    def wait_for_standby(self) -> int:
        """Process id of a standby, as soon as it is ready to fork ranks."""
        found: list[int] = []

        def ready() -> bool:
            found[:] = [pid for pid, _ in self._marked() if _name(pid) == standby.NAME]
            return bool(found)

        self.wait_for(ready, "standby")
        return found[0]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def interrupt(self) -> None:
        """Ctrl-C: the terminal signals the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, exit_code: int) -> str:
        """Wait for the end, which must have this exit code and leave neither a process nor a temporary file."""
        try:
            self.process.wait(max(0.0, self._until - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running at its deadline:\n{self.output[-4000:]}") from None
        assert self.process.returncode == exit_code, f"exit code {self.process.returncode}:\n{self.output[-6000:]}"
        grace = time.monotonic() + 20.0  # what is being reaped just now
        while (left := self._left_behind()) and time.monotonic() < grace:
            time.sleep(0.02)
        assert not left, f"left behind: {left}"
        return self.output

    def close(self) -> None:
        for pid, _ in self._marked():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._output.close()
        Path(self._output.name).unlink()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _left_behind(self) -> list[str]:
        processes = [f"process {pid}: {_command_line(pid)}" for pid, _ in self._marked()]
        return processes + [f"directory {path}" for path in self._temporary.glob("trestle-*")]

    def _marked(self) -> Iterator[tuple[int, dict[str, str]]]:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                # A zombie's environment is empty, and other users' cannot be read.
                with suppress(OSError):
                    pairs = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                    environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
                    if environment.get(MARK) == self._mark:
                        yield int(entry.name), environment


@contextmanager
def started(
    command: Sequence[str], where: Path, run: Path, *, deadline: float = 240.0, more: dict[str, str] | None = None
) -> Iterator[Program]:
    """Start `command` in the folder `where`; whatever is left of it at the end of the block is killed."""
    program = Program(command, where, run, deadline, more or {})
    try:
        yield program
    finally:
        program.close()


def _command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    return ""


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _rank_log(pid: int) -> Path | None:
    """The log of the rank that a process is, which is where it prints to."""
    with suppress(OSError):
        printed = Path(os.readlink(f"/proc/{pid}/fd/1"))
        if printed.name.startswith("rank-"):
            return printed
    return None


def _is_worker(pid: int) -> bool:
    """Whether the process has become the rank: before that it is the small program that starts it."""
    words = _command_line(pid).split()
    return "-m" in words and words[words.index("-m") + 1] in ("training.worker", "tests.faults.planted_worker")
