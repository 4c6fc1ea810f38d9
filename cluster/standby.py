"""A node's standby: one more process of the run's command, which has imported all that a rank needs and from which the
ranks of the next attempt are forked. Knows nothing of Ray.

What the command has to do for it is in `supervisor.run`'s docstring; `training.standby` is one that does.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from cluster.children import Adopted, Child, Orphans, start_process
from cluster.memory import available_memory, memory_of

STANDBY_BYTES = 512 * 1024 * 1024
"""What a standby is taken to need before one has been measured: 0.3 GB on a machine without GPUs."""
PATIENCE_SECONDS = 5.0
"""How long a failed attempt waits for a standby that still imports, now that it has the cores for itself. Each rank
would have to do the same from the beginning."""
ANSWER_SECONDS = 5.0
"""How long a rank may take to be forked; it takes 0.02 s."""
TICK_SECONDS = 0.2
LOOK_SECONDS = 5.0
"""How often the memory is looked at."""
MOST_DEATHS = 3
"""After that many before they were ready no further one is started."""
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class Standby:
    """Keeps one standby ready, from the first call of `prepare` on, as long as there is memory for it.

    A thread of its own starts the process, and outlives it (PR_SET_PDEATHSIG). `insist`: whatever the memory;
    `root`: where /proc and /sys are read.
    """

    def __init__(
        self,
        command: list[str],
        working_directory: str,
        environment: Mapping[str, str],
        directory: Path,
        *,
        insist: bool = False,
        root: Path = Path("/"),
    ) -> None:
        self.killed = 0
        """How many have ended by SIGKILL, which is how the kernel gets memory back."""
        self.serves = (command, working_directory, dict(environment))
        self._directory = directory
        self._insist = insist
        self._root = root
        self._lock = threading.Lock()  # held while the process is started, spoken to or ended
        self._wake = threading.Event()
        self._settled = threading.Event()  # it is known whether the present process is fit
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._ready = False
        self._deaths = 0
        self._bytes = STANDBY_BYTES
        self._ranks: list[int] = []
        self._told: set[str] = set()
        self._notes: list[str] = []
        self._thread: threading.Thread | None = None

    def prepare(self, ranks: list[int]) -> None:
        """Have one ready from now on; `ranks` are the processes of this node's ranks, whose memory comes first."""
        self._ranks = ranks
        if self._thread is None and not self._closed:
            # So that a rank becomes this process's child when what has forked it ends.
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            self._thread = threading.Thread(target=self._run, name="standby", daemon=True)
            self._thread.start()

    def start_rank(self, environment: Mapping[str, str], log: BinaryIO) -> Child | None:
        """Fork a rank that writes to `log`; None where that cannot be had now, and the rank has to be started cold."""
        if self._process is None or not self._settled.wait(PATIENCE_SECONDS):
            return None
        with self._lock:
            if self._line is None or not self._ready:
                return None
            try:
                return self._forked(self._line, environment, log)
            except (OSError, ValueError, KeyError) as error:
                self._note(f"the standby has not started a rank: {error or type(error).__name__}")
                self._end()
                return None

    def _forked(self, line: socket.socket, environment: Mapping[str, str], log: BinaryIO) -> Child:
        text = json.dumps({"environment": dict(environment)}).encode() + b"\n"
        wait, go = os.pipe()
        try:
            try:
                sent = socket.send_fds(line, [text], [log.fileno(), wait])
            finally:
                os.close(wait)
            line.sendall(text[sent:])
            pid = int(_hear(line)["pid"])
            os.write(go, b"!")
            return Adopted(pid)
        finally:
            os.close(go)  # whatever answers too late ends: its rank is started cold

    def take_notes(self) -> list[str]:
        """Why there is none, or no longer; each reason once."""
        notes, self._notes = self._notes, []
        return notes

    def close(self) -> None:
        """End the process. Ranks that were forked from it go on."""
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    # ── in the thread ──────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        looked, reaped = float("-inf"), time.monotonic()
        orphans = Orphans()
        while not self._closed:
            if time.monotonic() - reaped > LOOK_SECONDS:
                reaped = time.monotonic()
                orphans.reap()
            with self._lock:
                if self._process is None:
                    if self._deaths < MOST_DEATHS and time.monotonic() - looked > LOOK_SECONDS:
                        looked = time.monotonic()
                        if self._enough(needed=self._bytes, share=1.0):
                            self._start()
                elif not self._ready and self._listen():
                    pass
                elif self._process.poll() is not None:
                    self._bury(self._process.returncode)
                elif self._ready and time.monotonic() - looked > LOOK_SECONDS:
                    looked = time.monotonic()
                    if not self._enough(needed=0, share=0.5):
                        self._end()
            self._wake.wait(TICK_SECONDS)  # for its first word or its end: no one event covers both
        with self._lock:
            self._end()

    def _enough(self, needed: int, share: float) -> bool:
        """Whether, after `needed` bytes, there is `share` of what the ranks use now for them to grow into."""
        if self._insist:
            return True
        try:
            available, reserve = available_memory(self._root), int(share * memory_of(self._ranks))
        except OSError as error:
            self._note(f"no standby ranks: the free memory cannot be read: {error}", about="memory")
            return False
        if available < needed + reserve:
            self._note(
                f"no standby ranks: {_mb(available)} of memory are free, but a standby needs {_mb(self._bytes)} "
                f"and the ranks, which use {_mb(memory_of(self._ranks))}, may need as much again",
                about="memory",
            )
            return False
        return True

    def _start(self) -> None:
        command, working_directory, environment = self.serves
        ours, theirs = socket.socketpair()
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with theirs, (self._directory / "standby.log").open("wb") as log:
                self._process = start_process(
                    command,
                    working_directory,
                    {**environment, "TRESTLE_STANDBY": str(theirs.fileno())},
                    log,
                    inherit=[theirs.fileno()],
                )
        except OSError as error:
            ours.close()
            self._deaths += 1
            self._note(f"no standby ranks: {error}")
            return
        self._line = ours
        self._settled.clear()

    def _listen(self) -> bool:
        """Whether the process has said how it is."""
        assert self._line is not None and self._process is not None
        if not select.select([self._line], [], [], 0)[0]:
            return False
        with suppress(OSError, ValueError):
            message = _hear(self._line)
            if "ready" in message:
                self._ready = True
                self._deaths = 0
                self._bytes = memory_of([self._process.pid])
            else:
                self._note(f"no standby ranks: {message.get('unfit', 'the command knows of none')}")
                self._deaths = MOST_DEATHS
                self._end()
            self._settled.set()
            return True
        return False  # it has ended

    def _bury(self, code: int) -> None:
        self._deaths += 1
        self.killed += code == -signal.SIGKILL
        words = ""
        with suppress(OSError):
            lines = (self._directory / "standby.log").read_text(errors="replace").strip().splitlines()
            words = f": {lines[-1][:300]}" if lines else ""
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        self._note(f"the standby {how}{words}")
        self._end()

    def _end(self) -> None:
        """With the lock held: no process from here on, so that whoever waits for it starts ranks cold."""
        process, self._process = self._process, None
        line, self._line = self._line, None
        self._ready = False
        if line is not None:
            line.close()
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._settled.set()

    def _note(self, text: str, about: str | None = None) -> None:
        if (about or text) not in self._told:
            self._told.add(about or text)
            self._notes.append(text)


def _hear(line: socket.socket) -> dict[str, Any]:
    """One message. Raises OSError or ValueError where none comes whole."""
    line.settimeout(ANSWER_SECONDS)
    text = b""
    while not text.endswith(b"\n"):
        part = line.recv(65536)
        if not part:
            raise ConnectionError("it has gone")
        text += part
    message = json.loads(text)
    if not isinstance(message, dict):
        raise ValueError("it does not say what a standby says")
    return message


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
