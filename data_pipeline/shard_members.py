"""Reads a shard set's members, each checked by CRC the first time that a process touches it.

From tars in a folder here, through the node's cache in `remote_members`.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DamagedShard
from data_pipeline.retrying import LOCAL
from data_pipeline.shard_store import LocalStore, Store

_OPEN_FILES = 256


class DamagedMember(DamagedShard):
    """A member that cannot be read, or whose bytes are not those that were written."""

    def __init__(self, message: str, member: int) -> None:
        super().__init__(message)
        self.member = member


@dataclass(frozen=True)
class Layout:
    """Where members lie: the manifest's tars, and the index [members, 4] of tar, offset, rows and CRC."""

    tars: Sequence[dict[str, Any]]
    index: NDArray[np.int64]
    row_bytes: int
    manifest_sha256: str
    pairs_per_member: int = 0
    """Of a shard set of pairs, whose index has bytes in the place of rows; 0: members are arrays of rows."""

    def label(self, member: int) -> str:
        """The member's name in messages."""
        if not self.pairs_per_member:
            return f"member {member:09d}.npy"
        first = member * self.pairs_per_member
        return f"the member of pairs {first:09d} to {first + self.pairs_per_member - 1:09d}"

    def key(self, member: int) -> str:
        """The member's name in a cache: the same for the same data, wherever they lie."""
        return sha256(f"{self.manifest_sha256}/{member}".encode()).hexdigest()


@dataclass(frozen=True)
class Place:
    """One member: its tar, the offset and size of its data in it, and their CRC."""

    member: int
    tar: int
    offset: int
    size: int
    crc: int


class Members(Protocol):
    """What `ShardSet` reads through."""

    def check(self, member: int) -> None:
        """Raises DamagedMember unless the member's bytes are those that were written."""

    def check_source(self, member: int) -> None:
        """The same, past any local copy."""

    def rows(self, out: NDArray[Any], members: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        """Puts row `rows[i]` of member `members[i]` into `out[i]`. Raises DamagedMember."""

    def part(self, member: int, offset: int, size: int) -> bytes:
        """Bytes of a member's data, not checked; fewer at its end. Several threads may read at once.

        Raises DamagedMember if they cannot be read.
        """

    def forget(self, member: int) -> bool:
        """Gives up a local copy, whose bytes are wrong; False if there is none and the source itself was read."""

    def fetch_ahead(self, members: Iterable[int]) -> None:
        """Begins to fetch what will be wanted; does not wait and does not fail."""

    def close(self) -> None:
        """Gives up files and threads; reading takes them again."""


class MembersBase:
    """Where members are, and how their damage is told."""

    def __init__(self, store: Store, layout: Layout) -> None:
        self._store, self._layout = store, layout

    def place(self, member: int) -> Place:
        """Raises DamagedMember for an index that points outside a tar."""
        tar, offset, rows, crc = self._layout.index[member].tolist()
        place = Place(member, tar, offset, rows * self._layout.row_bytes, crc)
        if not (
            0 <= tar < len(self._layout.tars) and 0 < offset < offset + place.size <= self._layout.tars[tar]["size"]
        ):
            label = self._layout.label(member)
            raise DamagedMember(f"{self._store.path('index.npy')} puts {label} outside its tar", member)
        return place

    def tar_path(self, tar: int) -> str:
        """A tar's name for messages."""
        return self._store.path(self._layout.tars[tar]["file"])

    def damaged(self, place: Place, why: str) -> DamagedMember:
        """The error for a member whose bytes are wrong."""
        label = self._layout.label(place.member)
        message = f"{self.tar_path(place.tar)} is damaged: {label} {why}; prepare this shard set again"
        return DamagedMember(message, place.member)


class LocalMembers(MembersBase):
    """Tars in a folder, opened on first use, at most a few hundred at a time."""

    def __init__(self, store: LocalStore, layout: Layout) -> None:
        super().__init__(store, layout)
        self._files: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()  # of `part`: what reads rows takes turns anyhow

    def check(self, member: int) -> None:
        place = self.place(member)
        data = self._patiently(place, lambda: os.pread(self._descriptor(place.tar), place.size, place.offset))
        if len(data) != place.size or zlib.crc32(data) != place.crc:
            raise self.damaged(place, "fails its CRC")

    check_source = check

    def rows(self, out: NDArray[Any], members: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        entries = self._layout.index[members]
        size = self._layout.row_bytes
        offsets = (entries[:, 1] + rows * size).tolist()
        for number, (row, tar, offset) in enumerate(zip(out, entries[:, 0].tolist(), offsets, strict=True)):
            try:
                if os.preadv(self._files.get(tar) or self._descriptor(tar), [row], offset) == size:
                    continue
            except OSError:
                pass  # tried again, patiently
            place = self.place(int(members[number]))
            if self._patiently(place, lambda: self._row(row, tar, offset)) != size:  # noqa: B023  (called at once)
                message = f"{self.tar_path(tar)} ends too early: prepare this shard set again"
                raise DamagedMember(message, place.member)

    def part(self, member: int, offset: int, size: int) -> bytes:
        place = self.place(member)
        data: bytes = self._patiently(place, lambda: self._part(place.tar, place.offset + offset, size))
        return data

    def forget(self, member: int) -> bool:
        return False

    def fetch_ahead(self, members: Iterable[int]) -> None:
        pass

    def close(self) -> None:
        with self._lock:
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files.clear()

    def _part(self, tar: int, offset: int, size: int) -> bytes:
        """Reads side by side with other threads: each with a descriptor that none of them closes."""
        with self._lock:
            descriptor = os.dup(self._descriptor(tar))
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def _row(self, row: Any, tar: int, offset: int) -> int:
        return os.preadv(self._descriptor(tar), [row], offset)

    def _patiently(self, place: Place, read: Callable[[], Any]) -> Any:
        def attempt() -> Any:
            try:
                return read()
            except OSError:
                self._forget(place.tar)  # a handle may have gone stale, as on NFS
                raise

        path = self.tar_path(place.tar)
        try:
            return LOCAL.attempt(path, attempt)
        except OSError as error:
            raise DamagedMember(f"{path} cannot be opened: {error.strerror}", place.member) from error
        except DamagedShard as error:
            raise DamagedMember(str(error), place.member) from error

    def _descriptor(self, tar: int) -> int:
        descriptor = self._files.get(tar)
        if descriptor is not None:
            return descriptor
        path = self.tar_path(tar)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        expected = self._layout.tars[tar]["size"]
        size = os.fstat(descriptor).st_size
        if size != expected:
            os.close(descriptor)
            raise DamagedShard(f"{path} has {size} bytes instead of {expected}: prepare this shard set again")
        if len(self._files) >= _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        self._files[tar] = descriptor
        return descriptor

    def _forget(self, tar: int) -> None:
        with self._lock:
            descriptor = self._files.pop(tar, None)
            if descriptor is not None:
                os.close(descriptor)
