"""Decodes a batch's pictures side by side, in threads.

Threads, not processes: libjpeg-turbo and OpenCV give up Python's lock while they work, so that two threads decode as
many pictures as two processes; pixels are written once, into the batch; nothing is left over when a rank is killed, and
nothing is forked beside a GPU. What is read does not depend on how many there are.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

_AT_A_TIME = 8  # samples of one task: few enough that threads end together


class Decoders:
    """`workers` threads, begun with the first batch in each process; 0: the calling thread alone."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self._lock = threading.Lock()

    def each(self, count: int, work: Callable[[int], None]) -> None:
        """Does `work` for 0 ... count - 1, in any order; raises what the first in order raised."""
        if not self._workers or count < 2:
            for number in range(count):
                work(number)
            return

        def do(numbers: Sequence[int]) -> None:
            for number in numbers:
                work(number)

        pool = self._started()
        chunk = max(1, min(_AT_A_TIME, -(-count // self._workers)))
        tasks = [pool.submit(do, range(first, min(first + chunk, count))) for first in range(0, count, chunk)]
        try:
            for task in tasks:
                task.result()
        finally:
            for task in tasks:
                task.cancel()

    def close(self) -> None:
        """Ends the threads; another batch begins new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and pool[0] == os.getpid():
            pool[1].shutdown(wait=True, cancel_futures=True)

    def _started(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._pool[0] != os.getpid():  # threads do not survive a fork
                self._pool = (os.getpid(), ThreadPoolExecutor(self._workers, "decode"))
            return self._pool[1]
