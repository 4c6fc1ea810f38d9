"""Where the files of a checkpoint are read from: a folder, by mapping. `remote.source` reads the same behind a URL."""

from __future__ import annotations

import mmap
import stat
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

from training.checkpoint import format as fmt

_MAX_OPEN_FILES = (
    64  # a mapping holds a file descriptor; a thousand-rank checkpoint must fit under the usual limit of 1024
)

# Linux's value, which Python's mmap does not name: a file larger than the machine's memory may then be mapped.
_MAP_NORESERVE = 0x4000


class Source(Protocol):
    """The files of one checkpoint, by the names that a manifest may give them. Everything raises OSError."""

    location: Path | str
    """For messages."""

    def small(self, name: str) -> bytes:
        """A whole file. Raises FileNotFoundError where there is none."""

    def size(self, name: str) -> int:
        """Bytes of a file."""

    def sha256(self, name: str) -> str:
        """The file's checksum in hex, of all its bytes, read just now."""

    def elements(self, name: str, dtype: torch.dtype, offset: int, count: int) -> Iterator[tuple[int, torch.Tensor]]:
        """So many elements from a byte offset on, in turn: (number of the first, 1-D tensor). The file has been found
        to be as long as its manifest says.
        """


class NotAFile(OSError):
    """A link would lead out of the checkpoint, a pipe keep its reader waiting, a device never end."""


def check_is_file(path: Path) -> int:
    """Bytes of a file. Raises NotAFile, FileNotFoundError and other OSErrors."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise NotAFile("not a file but a link, a pipe or a device: a checkpoint holds its files themselves")
    return status.st_size


class LocalSource:
    """A folder. Files are mapped: the pages that a copy touches are read, no others."""

    def __init__(self, path: Path) -> None:
        self.location: Path | str = path
        self._path = path
        self._open: OrderedDict[str, memoryview] = OrderedDict()

    def small(self, name: str) -> bytes:
        self.size(name)
        return (self._path / name).read_bytes()

    def size(self, name: str) -> int:
        return check_is_file(self._path / name)

    def sha256(self, name: str) -> str:
        return fmt.sha256_of(self._path / name)

    def elements(self, name: str, dtype: torch.dtype, offset: int, count: int) -> Iterator[tuple[int, torch.Tensor]]:
        yield 0, torch.frombuffer(self._map(name), dtype=dtype, count=count, offset=offset)

    def _map(self, name: str) -> memoryview:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        with (self._path / name).open("rb") as file:
            # A private copy-on-write mapping: torch wants writable memory, the file stays untouched.
            mapped = mmap.mmap(
                file.fileno(), 0, flags=mmap.MAP_PRIVATE | _MAP_NORESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE
            )
        self._open[name] = memoryview(mapped)
        if len(self._open) > _MAX_OPEN_FILES:
            self._open.popitem(last=False)  # unmapped as soon as the last view of it is gone
        return self._open[name]
