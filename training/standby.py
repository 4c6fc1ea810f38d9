"""A process that has imported all that a rank needs, and from which ranks are forked: seconds later than a rank that
still has to import.

A supervisor starts `python -m training.worker RECIPE` with TRESTLE_STANDBY in place of RANK and the rest: the number of
an inherited stream socket, over which it is spoken to in lines of JSON.

    from the standby    {"ready": SECONDS}         everything is imported; or {"unfit": REASON}, and it ends
    to the standby      {"environment": {...}}     with two file descriptors, the log and a pipe: fork a rank
    from the rank       {"pid": NUMBER}            it runs, as a child of the supervisor, in a session of its own

The rank goes on when it reads a byte from the pipe, and ends where the pipe is closed instead: the supervisor has given
up waiting for it, and has started that rank in another way.

The imports run in a thread of low priority, which leaves the cores to the ranks that train meanwhile; it has to be a
thread, because a process without privileges could not raise its own priority again. Forking is safe as long as there is
no other thread and CUDA has not been touched, which is checked.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

VARIABLE = "TRESTLE_STANDBY"
NAME = "trestle-standby"
"""What `ps` and `top` show for one that is ready, with the command line of a rank."""
NICE = 10
"""Of the thread that imports: about a tenth of a core beside a rank that keeps one busy, all of one that idles."""
MEETING_SECONDS = 5.0
"""How long a forked rank waits to become the supervisor's child: it takes well under a millisecond."""
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_PTRACER = 1, 15, 0x59616D61  # linux/prctl.h
_LATE = ("deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.module_inject.auto_ep_layer", "numpy.ma")
"""What DeepSpeed imports as late as while it is initialized, some of it slowly."""
CUDA_PROBE = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""The variable that lets torch count GPUs without starting CUDA, if it is 1 before torch is imported."""


def become_rank_if_standby(load: Callable[[list[str]], object] | None = None) -> None:
    """Nothing in an ordinary rank. In a standby, `load(arguments)` (None: all that a rank imports) and wait; return in
    each rank that is forked. Standby and ranks end with the process that started them.
    """
    number = os.environ.pop(VARIABLE, None)
    if number is None:
        return
    supervisor = os.getppid()
    with socket.socket(fileno=int(number)) as line:
        begun = time.monotonic()
        os.environ[CUDA_PROBE] = "1"
        normal = _first_to_go_when_memory_runs_out()
        _load(load or import_all)
        unfit = _unfit()
        if unfit is not None:
            _say(line, unfit=unfit)
            sys.exit(0)
        gc.collect()
        gc.freeze()  # a collection in a rank would copy every page that is shared with the others
        name_process(NAME)
        _say(line, ready=round(time.monotonic() - begun, 3))
        while True:
            message, log, go = _hear(line)
            if _fork(supervisor):
                _become_rank(message["environment"], log, normal)
                _say(line, pid=os.getpid())
                if not os.read(go, 1):
                    os._exit(1)
                os.close(go)
                return
            os.close(log)
            os.close(go)


def import_all(arguments: list[str]) -> None:
    """Import what a rank with these arguments imports until its second step."""
    from training import worker
    from training.inputs import inputs_of
    from training.metrics.board import without_tensorflow
    from training.recipe import load_recipe

    without_tensorflow()
    importlib.import_module("torch.utils.tensorboard")
    recipe = load_recipe(Path(arguments[0]), arguments[1:])
    inputs_of(recipe)
    for name in ("training.samples", "training.validation"):  # what inputs import when they are looked at
        importlib.import_module(name)
    worker.family(recipe.model.family).implementation  # noqa: B018 a property that imports
    if recipe.parallel.zero_stage > 0:
        importlib.import_module("training.engine.zero")
        for name in _LATE:
            with suppress(ImportError):
                importlib.import_module(name)


def name_process(name: str) -> None:
    """What `ps` and `top` show: up to 15 characters."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def _load(load: Callable[[list[str]], object]) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
            load(sys.argv[1:])
        except BaseException as error:  # noqa: BLE001 raised again below
            failures.append(error)

    thread = threading.Thread(target=run, name="imports")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def cuda_has_started() -> bool:
    """Whether this process has opened a GPU's memory: what is forked from it cannot use CUDA."""
    for entry in os.scandir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(entry.path).startswith("/dev/nvidia-uvm"):
                return True
    return False


def _unfit() -> str | None:
    """Why no rank may be forked from this process, if there is a reason."""
    if cuda_has_started():
        return "an import has started CUDA, which does not survive a fork"
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        return f"an import has left the thread {others[0]} running, which does not survive a fork"
    return None  # OpenBLAS has threads that Python does not know of; it ends them for a fork, and starts them again


def _fork(supervisor: int) -> bool:
    """True in a new process that is the supervisor's child: what forked it has ended."""
    sys.stdout.flush()
    sys.stderr.flush()
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        return False
    if os.fork():
        os._exit(0)
    deadline = time.monotonic() + MEETING_SECONDS
    while os.getppid() != supervisor:
        if time.monotonic() > deadline:
            os._exit(1)
        time.sleep(0.0005)
    libc = ctypes.CDLL(None)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != supervisor:
        os._exit(1)
    libc.prctl(PR_SET_PTRACER, supervisor, 0, 0, 0)  # fails without Yama, where nothing is needed
    os.setsid()
    return True


def _become_rank(environment: dict[str, str], log: int, normal: str) -> None:
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(normal)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(environment)
    name_process("python")


def _first_to_go_when_memory_runs_out() -> str:
    """Tell the kernel to take a standby before a rank; returns what was set before."""
    score = Path("/proc/self/oom_score_adj")
    normal = "0"
    with suppress(OSError):
        normal = score.read_text().strip()
        score.write_text("1000")
    return normal


def _say(line: socket.socket, **message: Any) -> None:
    line.sendall(json.dumps(message).encode() + b"\n")


def _hear(line: socket.socket) -> tuple[dict[str, Any], int, int]:
    """The next message with its file descriptors. Ends the process when the supervisor has gone."""
    text = b""
    descriptors: list[int] = []
    while not text.endswith(b"\n"):
        part, sent, _, _ = socket.recv_fds(line, 65536, 2)
        descriptors += sent
        if not part:
            sys.exit(0)
        text += part
    message: dict[str, Any] = json.loads(text)
    log, go = descriptors
    return message, log, go
