"""Sides of a comparison as processes of their own, so that each has its threads and memory to itself.

A side waits until it is told to do some steps, and says when they are done; while one works, the others sleep.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

# Large blocks stay with the process instead of going back to the kernel: this helps the peers most, so all get it.
MALLOC = "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296"
PATIENCE_SECONDS = 300.0


class Gate:
    """What a side calls after each step."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._left = pipe, 0

    def passed(self) -> None:
        """A step is done; returns when there is another one to do."""
        self._left -= 1
        while self._left <= 0:
            self._pipe.send(time.process_time())
            try:
                self._left = self._pipe.recv()
            except EOFError:
                os._exit(0)  # the comparison is over: nothing of this side is worth an orderly end


class Side:
    """One side: `work(gate, argument)` on each of `ranks` processes with `threads` threads."""

    def __init__(
        self, name: str, work: Callable[[Gate, Any], None], argument: Any, *, ranks: int, threads: int, log: Path
    ) -> None:
        self.name, self.ranks, self.threads, self._log = name, ranks, threads, log
        self._context = multiprocessing.get_context("spawn")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(ranks):
            ours, theirs = self._context.Pipe()
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": str(threads),
                "GLIBC_TUNABLES": MALLOC,
                # On a machine that others use as well, threads that spin while they wait would spoil everything.
                "OMP_WAIT_POLICY": "passive",
            }
            process = self._context.Process(target=_enter, args=(work, theirs, argument, str(log)), daemon=True)
            before = {key: os.environ.get(key) for key in environment}
            os.environ.update(environment)  # the child takes the environment at its start: malloc and OpenMP read it
            process.start()
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._used = self._all_done()

    def run(self, steps: int) -> tuple[float, float]:
        """Seconds that `steps` steps take, and the CPU-seconds that all ranks spend on them."""
        begun, before = time.perf_counter(), self._used
        for pipe in self._pipes:
            pipe.send(steps)
        self._used = self._all_done()
        return time.perf_counter() - begun, self._used - before

    def _all_done(self) -> float:
        """Wait for every rank; the CPU-seconds that they have used since their start."""
        used = 0.0
        for pipe in self._pipes:
            try:
                answer = pipe.recv() if pipe.poll(PATIENCE_SECONDS) else None
            except EOFError:
                answer = None
            if answer is None:
                self.close()
                said = self._log.read_text()[-3000:]
                raise RuntimeError(f"{self.name} failed or was silent for {PATIENCE_SECONDS:.0f} s; it said:\n{said}")
            used += answer
        return used

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
            process.kill()
            process.join()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _enter(work: Callable[[Gate, Any], None], pipe: Connection, argument: Any, log: str) -> None:
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        work(Gate(pipe), argument)
    finally:
        sys.stdout.flush()
