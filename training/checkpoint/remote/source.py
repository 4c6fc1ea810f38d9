"""A checkpoint read from a store in ranges: only what is asked for, a bounded part of it in memory."""

from __future__ import annotations

import concurrent.futures
from collections import OrderedDict, deque
from collections.abc import Iterator
from pathlib import Path

import torch

from training.checkpoint.remote.store import RemoteStore

BLOCK_BYTES = 1 << 20
"""What small reads are rounded to: the pieces of norms and biases lie side by side, and each request costs its time."""
CACHED_BLOCKS = 32
RANGE_BYTES = 16 << 20
"""The longest single request; several are under way at a time."""
AHEAD = 4


class RemoteSource:
    """The files in a folder of a store. Raises FileNotFoundError and StorageUnreachable.

    At most CACHED_BLOCKS · BLOCK_BYTES + AHEAD · RANGE_BYTES (96 MiB) are held. `bytes_read` counts what was fetched.
    """

    def __init__(self, store: RemoteStore, folder: str) -> None:
        self.location: Path | str = store.path(folder)
        self.bytes_read = 0
        self._store = store
        self._folder = folder
        self._sizes: dict[str, int] = {}
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None

    def small(self, name: str) -> bytes:
        content = self._store.read(f"{self._folder}/{name}")
        self.bytes_read += len(content)
        return content

    def size(self, name: str) -> int:
        if name not in self._sizes:
            self._sizes[name] = self._store.size(f"{self._folder}/{name}")
        return self._sizes[name]

    def sha256(self, name: str) -> str:
        size = self._store.size(f"{self._folder}/{name}")
        self.bytes_read += size
        return self._store.sha256(f"{self._folder}/{name}", size)

    def elements(self, name: str, dtype: torch.dtype, offset: int, count: int) -> Iterator[tuple[int, torch.Tensor]]:
        size = count * dtype.itemsize
        if size <= BLOCK_BYTES:
            yield 0, torch.frombuffer(bytearray(self._from_blocks(name, offset, offset + size)), dtype=dtype)
            return
        pool = self._pool()
        waiting: deque[tuple[int, concurrent.futures.Future[bytes]]] = deque()
        for start in [*range(offset, offset + size, RANGE_BYTES), None]:
            if start is not None:
                stop = min(start + RANGE_BYTES, offset + size)
                waiting.append((start, pool.submit(self._range, name, start, stop)))
            while waiting and (start is None or len(waiting) == AHEAD):
                begin, future = waiting.popleft()
                data = future.result()
                yield (begin - offset) // dtype.itemsize, torch.frombuffer(bytearray(data), dtype=dtype)

    def _from_blocks(self, name: str, start: int, stop: int) -> bytes:
        first, last = start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
        whole = b"".join(self._block(name, number) for number in range(first, last + 1))
        return whole[start - first * BLOCK_BYTES : stop - first * BLOCK_BYTES]

    def _block(self, name: str, number: int) -> bytes:
        key = name, number
        if key not in self._blocks:
            start = number * BLOCK_BYTES
            self._blocks[key] = self._range(name, start, min(start + BLOCK_BYTES, self.size(name)))
            if len(self._blocks) > CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(key)
        return self._blocks[key]

    def _range(self, name: str, start: int, stop: int) -> bytes:
        data = self._store.read(f"{self._folder}/{name}", start, stop)
        if len(data) != stop - start:
            raise OSError(f"{len(data)} bytes of {self.location}/{name} came instead of {stop - start}")
        self.bytes_read += len(data)
        return data

    def _pool(self) -> concurrent.futures.ThreadPoolExecutor:
        if self._threads is None:
            self._threads = concurrent.futures.ThreadPoolExecutor(AHEAD, thread_name_prefix="checkpoint-read")
        return self._threads
