"""Reads batches ahead in a thread, so that the loop never waits for a disk."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from data_pipeline.errors import DamagedShard, DataMismatch

_FETCH_AHEAD = 8  # batches beyond those that are read
_PATIENCE_SECONDS = 5.0

B = TypeVar("B")
C = TypeVar("C", covariant=True)


class Batches(Protocol[C]):
    """What can be read ahead of: a stream or a validation set."""

    remote: bool

    def batch(self, start: int, size: int, index: int = 0, count: int = 1) -> C:
        """Slice `index` of `count` of samples start ... start + size."""

    def fetch_ahead(self, start: int, size: int, index: int = 0, count: int = 1) -> None:
        """Begins to fetch what that batch will read."""


class Prefetcher(Generic[B]):
    """Iterates the batches of `requests`, (start, size) pairs, at most `depth` of them ahead.

    What remote shard sets will have to give is fetched from further ahead.

    An error of the reading thread is raised in the consumer, after the batches before it. What was prefetched is not
    consumed: the position to save is the caller's count. `close` (or leaving the `with` block) stops and joins the
    thread; one that a store keeps waiting for longer than a few seconds is left to end by itself.
    """

    def __init__(
        self,
        stream: Batches[B],
        requests: Iterable[tuple[int, int]],
        index: int = 0,
        count: int = 1,
        depth: int = 2,
    ) -> None:
        self._stream, self._requests, self._index, self._count = stream, requests, index, count
        self._ready: queue.Queue[tuple[B | None, BaseException | None]] = queue.Queue(maxsize=max(1, depth))
        self._stop = threading.Event()
        self._finished = False
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[B]:
        return self

    def __next__(self) -> B:
        if self._finished or self._stop.is_set():
            raise StopIteration
        batch, error = self._ready.get()
        if batch is not None:
            return batch
        self._finished = True
        self._thread.join()
        if error is not None:
            raise error
        raise StopIteration

    def close(self) -> None:
        """Stops the thread and waits for its end; batches that were read ahead are dropped."""
        self._stop.set()
        until = time.monotonic() + _PATIENCE_SECONDS
        while self._thread.is_alive() and time.monotonic() < until:
            with suppress(queue.Empty):
                self._ready.get(timeout=0.01)  # makes room for a put that waits

    def __enter__(self) -> Prefetcher[B]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        last: BaseException | None = None
        try:
            for start, size in self._announced():
                if self._stop.is_set():
                    return
                self._ready.put((self._stream.batch(start, size, self._index, self._count), None))
        except BaseException as error:  # noqa: BLE001  (raised in the consumer)
            last = error
        if not self._stop.is_set():
            self._ready.put((None, last))

    def _announced(self) -> Iterator[tuple[int, int]]:
        """The requests, each after those that follow it have been announced to the stream."""
        if not self._stream.remote:
            yield from self._requests
            return
        upcoming: deque[tuple[int, int]] = deque()
        for start, size in self._requests:
            with suppress(DamagedShard, DataMismatch):  # reading the batch meets it again, and tells it
                self._stream.fetch_ahead(start, size, self._index, self._count)
            upcoming.append((start, size))
            if len(upcoming) > _FETCH_AHEAD:
                yield upcoming.popleft()
        yield from upcoming
