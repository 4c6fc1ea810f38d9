"""A process that has imported all that a rank imports, and forks ranks: `python -m tests.distributed.forks SOCKET`.

The imports cost every fresh rank five seconds of a core. Here they are done once, before any thread, backward pass or
process group. What forked ranks have in common and fresh ones have not is what imports have drawn, and the seed of
hashes: all walk a set of strings in the same order, and only fresh ranks show where that order decides what they send.
One line of JSON over the socket whose number is the argument asks for a launch, one line answers; when the socket
closes, the ranks and this process end.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from training.standby import CUDA_PROBE, cuda_has_started

PR_SET_PDEATHSIG = 1  # linux/prctl.h
MODULES = (
    "numpy.ma",
    "torch.utils.tensorboard",
    "training.worker",
    "training.engine.zero",
    "training.inputs.text",
    "training.inputs.pairs",
    "modeling.gpt.network",
    "modeling.clip.network",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.module_inject.auto_ep_layer",
)


@dataclass(frozen=True)
class Launch:
    """Ranks that call `function` (module:name) with the argument in `folder`, where their logs and results go."""

    function: str
    folder: str
    environments: list[dict[str, str]]
    """One a rank."""
    seconds: float
    """Until those that still run are killed."""
    cwd: str
    fresh: bool = False
    """With nothing imported, for what has to be done before."""


class Server:
    """The process, seen from the tests. Ends with `close`, or when this process does."""

    def __init__(self) -> None:
        import subprocess

        self._line, theirs = socket.socketpair()
        root = Path(__file__).parents[2]
        with theirs:
            number = theirs.fileno()
            path = f"{root}:{os.environ.get('PYTHONPATH', '')}"
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.distributed.forks", str(number)],
                pass_fds=[number],
                cwd=root,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, CUDA_PROBE: "1"},
                stdin=subprocess.DEVNULL,
            )

    def run(self, launch: Launch) -> int | None:
        """The first rank that failed, or, past the time, the first still running; None when all have ended well."""
        self._line.sendall(json.dumps(asdict(launch)).encode() + b"\n")
        answer = _read_line(self._line)
        assert answer, f"the process that forks ranks has ended with {self._process.wait()}"
        failed: int | None = json.loads(answer)
        return failed

    def close(self) -> None:
        """End the process, and with it the ranks of a launch that is under way."""
        self._line.close()
        self._process.wait()


def _read_line(line: socket.socket) -> bytes:
    """Up to the end of a line; nothing when the other side has closed."""
    text = b""
    while not text.endswith(b"\n"):
        part = line.recv(1 << 16)
        if not part:
            return b""
        text += part
    return text


def serve(line: socket.socket, imported: dict[str, str]) -> tuple[str, str]:
    """Fork ranks as asked, and never return but in a rank: with its function and folder. `imported` is what imports
    have put into the environment.
    """
    only_fresh = cuda_has_started()  # slower, but a forked rank could not use the GPU
    while text := _read_line(line):
        launch = Launch(**json.loads(text))
        launch = replace(launch, fresh=launch.fresh or only_fresh)
        ranks: list[int] = []
        for rank in range(len(launch.environments)):
            pid = os.fork()
            if pid == 0:
                line.close()
                _become_rank(launch, rank, imported)
                return launch.function, launch.folder
            ranks.append(pid)
        line.sendall(json.dumps(_watch(ranks, launch.seconds, line)).encode() + b"\n")
    sys.exit(0)


def _watch(ranks: list[int], seconds: float, line: socket.socket) -> int | None:
    """Wait for the ranks; see `Server.run`. None is left running."""
    until = time.monotonic() + seconds
    running = {os.pidfd_open(pid): rank for rank, pid in enumerate(ranks)}
    failed: int | None = None
    waiting = select.poll()  # `select` takes no numbers above 1,023, and a long run of tests has more files open
    for descriptor in (line.fileno(), *running):
        waiting.register(descriptor, select.POLLIN)
    while running and failed is None:
        ready = [fd for fd, _ in waiting.poll(1000 * max(0.0, until - time.monotonic()))]
        if not ready or line.fileno() in ready:  # too late, or nobody waits any more
            failed = min(running.values())
        for ended in [fd for fd in ready if fd in running]:
            waiting.unregister(ended)
            rank = running.pop(ended)
            os.close(ended)
            _, status = os.waitpid(ranks[rank], 0)
            if status and failed is None:
                failed = rank
    for fd, rank in running.items():
        os.kill(ranks[rank], signal.SIGKILL)
        with suppress(ProcessLookupError):  # it had not come to its setsid, and so has started nothing
            os.killpg(ranks[rank], signal.SIGKILL)
        os.waitpid(ranks[rank], 0)
        os.close(fd)
    return failed


def _become_rank(launch: Launch, rank: int, imported: dict[str, str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.setsid()
    log = os.open(Path(launch.folder) / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(launch.environments[rank] if launch.fresh else imported | launch.environments[rank])
    os.chdir(launch.cwd)
    if launch.fresh:
        words = [sys.executable, "-m", "tests.distributed.launch", launch.function, launch.folder]
        os.execv(sys.executable, words)
    import numpy

    random.seed()  # else all ranks draw the same
    numpy.random.seed()


def main() -> None:
    line = socket.socket(fileno=int(sys.argv[1]))
    before = dict(os.environ)
    for name in MODULES:
        importlib.import_module(name)
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    assert not others, f"an import has left the thread {others[0]} running, which does not survive a fork"
    gc.collect()
    gc.freeze()  # a collection in a rank would copy every page that is shared with the others
    imported = {name: value for name, value in os.environ.items() if before.get(name) != value}
    function, folder = serve(line, imported)
    from tests.distributed.launch import work

    work(function, Path(folder))


if __name__ == "__main__":
    main()
