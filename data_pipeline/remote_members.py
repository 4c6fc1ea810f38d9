"""Reads members of a remote shard set through the node's cache, into which ranged reads fetch them ahead of use.

A member is checked by CRC before it enters the cache, and once in every process that reads it from there.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DamagedShard
from data_pipeline.retrying import REMOTE, Corrupt, reason
from data_pipeline.shard_members import DamagedMember, Layout, MembersBase, Place
from data_pipeline.shard_store import RemoteStore

_FETCHERS = 8  # threads of a shard set
_STILL_TRUE_SECONDS = 10.0


class RemoteMembers(MembersBase):
    """Tars behind a URL, member by member through the node's cache."""

    def __init__(self, store: RemoteStore, layout: Layout) -> None:
        super().__init__(store, layout)
        self._remote = store
        self._ahead = Fetchers(self._enter)
        self._failed: dict[int, tuple[float, DamagedMember]] = {}

    def check(self, member: int) -> None:
        place, key = self.place(member), self._layout.key(member)
        for _ in range(2):
            descriptor = self._open(place, key)
            try:
                data = os.pread(descriptor, place.size, 0)
            finally:
                os.close(descriptor)
            if len(data) == place.size and zlib.crc32(data) == place.crc:
                return
            self._remote.cache.discard(key)  # the copy is damaged, not the source
        raise self.damaged(place, f"fails its CRC in the cache {self._remote.cache.directory} again and again")

    def check_source(self, member: int) -> None:
        self._fetched(self.place(member))

    def rows(self, out: NDArray[Any], members: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        size = self._layout.row_bytes
        order = np.argsort(members, kind="stable")
        starts = np.flatnonzero(np.diff(members[order], prepend=-1))
        for group in np.split(order, starts[1:]):
            place = self.place(int(members[group[0]]))
            descriptor = self._open(place, self._layout.key(place.member))
            try:
                for number in group.tolist():
                    if os.preadv(descriptor, [out[number]], int(rows[number]) * size) != size:
                        raise self.damaged(place, f"was cut short in the cache {self._remote.cache.directory}")
            finally:
                os.close(descriptor)

    def part(self, member: int, offset: int, size: int) -> bytes:
        descriptor = self._open(self.place(member), self._layout.key(member))
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def forget(self, member: int) -> bool:
        self._remote.cache.discard(self._layout.key(member))
        return True

    def fetch_ahead(self, members: Iterable[int]) -> None:
        cache = self._remote.cache
        self._ahead.want([member for member in members if not cache.has(self._layout.key(member))])

    def close(self) -> None:
        self._ahead.stop()

    def _enter(self, member: int) -> None:
        os.close(self._open(self.place(member), self._layout.key(member)))

    def _open(self, place: Place, key: str) -> int:
        def fetch() -> bytes:
            # Whoever has waited for another thread's attempts need not begin all over again.
            when, error = self._failed.get(place.member, (-math.inf, None))
            if error is not None and time.monotonic() - when < _STILL_TRUE_SECONDS:
                raise error
            try:
                return self._fetched(place)
            except DamagedMember as error:
                self._failed[place.member] = (time.monotonic(), error)
                raise

        return self._remote.cache.open(key, fetch)

    def _fetched(self, place: Place) -> bytes:
        """The member's data, checked. Raises DamagedMember after the last attempt."""
        name = self._layout.tars[place.tar]["file"]

        def attempt() -> bytes:
            data = self._remote.range(name, place.offset, place.size)
            if zlib.crc32(data) != place.crc:
                raise Corrupt("it fails its CRC")
            return data

        what = f"{self._layout.label(place.member)} of {self.tar_path(place.tar)}"
        try:
            return REMOTE.attempt(what, attempt)
        except OSError as error:
            raise DamagedMember(f"{what} cannot be read: {reason(error)}", place.member) from error
        except DamagedShard as error:
            raise DamagedMember(str(error), place.member) from error


class Fetchers:
    """A few threads that enter members into the cache; they begin with the first wish and end with the process."""

    def __init__(self, enter: Callable[[int], None]) -> None:
        self._enter = enter
        self._wanted: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._pending: set[int] = set()
        self._threads: list[threading.Thread] = []
        self._process = os.getpid()
        self._lock = threading.Lock()

    def want(self, members: Sequence[int]) -> None:
        if not members:
            return
        with self._lock:
            if self._process != os.getpid():  # threads do not survive a fork
                self._process, self._threads, self._wanted, self._pending = os.getpid(), [], queue.SimpleQueue(), set()
            while len(self._threads) < _FETCHERS:
                thread = threading.Thread(target=self._work, args=(self._wanted,), name="fetch", daemon=True)
                self._threads.append(thread)
                thread.start()
            for member in members:
                if member not in self._pending:
                    self._pending.add(member)
                    self._wanted.put(member)

    def stop(self) -> None:
        """What is not begun is dropped; what is under way ends by itself."""
        with self._lock:
            threads, self._threads = self._threads, []
            while not self._wanted.empty():
                self._wanted.get()
            self._pending.clear()
            for _ in threads:
                self._wanted.put(None)

    def _work(self, wanted: queue.SimpleQueue[int | None]) -> None:
        while (member := wanted.get()) is not None:
            with suppress(Exception):  # whoever needs the member meets the same error, and tells it
                self._enter(member)
            with self._lock:
                self._pending.discard(member)
