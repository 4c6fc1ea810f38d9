"""Reads single samples of a shard set by `os.pread`, checking each member's CRC the first time it is touched.

Nothing grows with the data but one byte a member (of about 1 MiB) and the mapped index. Files are opened on first use,
at most a few hundred at a time. Reading is safe from several threads and after a fork.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import BadShards, DamagedShard
from data_pipeline.shards import FORMAT_VERSION

_OPEN_FILES = 256


class ShardSet:
    """One corpus on disk. `directory` is the folder with manifest.json.

    Raises BadShards if it is no complete shard set of a known format, DamagedShard (with the file's name) if bytes are
    missing or changed.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.manifest, self.manifest_sha256 = _read_manifest(self.directory)
        m = self.manifest
        self.name: str = m["name"]
        self.sequence_length: int = m["sequence_length"]
        self.vocab_size: int = m["vocab_size"]
        self.tokenizer_sha256: str = m["tokenizer_sha256"]
        self.samples: int = m["samples"]
        self.tokens: int = m["tokens"]
        self.bytes: int = m["bytes"]
        self._rows_per_member: int = m["rows_per_member"]
        self._dtype = np.dtype(m["dtype"]).newbyteorder("<")
        self._row_bytes = (self.sequence_length + 1) * self._dtype.itemsize
        self._index: NDArray[np.int64] | None = None
        self._checked = np.zeros(m["members"], dtype=bool)
        self._files: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.samples

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer.model beside the shard sets."""
        return self.directory.parent / "tokenizer.model"

    def counts(self) -> NDArray[np.int64]:
        """How often each token occurs in the corpus, int64 [vocab_size]."""
        return _load_array(self.directory / "counts.npy", self.manifest["counts_sha256"])

    def read(self, positions: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
        """Samples at `positions` [n], each in [0, samples), as [n, sequence_length + 1] in the shards' dtype."""
        if len(positions) and (positions.min() < 0 or positions.max() >= self.samples):
            raise IndexError(f"{self.directory}: samples go from 0 to {self.samples - 1}")
        out = np.empty((len(positions), self.sequence_length + 1), dtype=self._dtype)
        members, rows = np.divmod(positions, self._rows_per_member)
        with self._lock:
            index = self._open_index()
            for member in np.unique(members[~self._checked[members]]).tolist():
                self._check_member(member)
            entries = index[members]
            offsets = (entries[:, 1] + rows * self._row_bytes).tolist()
            for row, tar, offset in zip(out, entries[:, 0].tolist(), offsets, strict=True):
                if os.preadv(self._descriptor(tar), [row], offset) != self._row_bytes:
                    raise DamagedShard(f"{self._tar_path(tar)} ends too early: prepare this shard set again")
        return out

    def verify(self) -> None:
        """Checks every member's CRC, and the counts. Raises DamagedShard."""
        self.counts()
        with self._lock:
            self._open_index()
            for member in range(len(self._checked)):
                self._check_member(member)

    def close(self) -> None:
        """Closes the tars that are open; reading opens them again."""
        with self._lock:
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files.clear()

    def _open_index(self) -> NDArray[np.int64]:
        if self._index is None:
            self._index = _load_array(self.directory / "index.npy", self.manifest["index_sha256"], mapped=True)
        return self._index

    def _check_member(self, member: int) -> None:
        tar, offset, rows, crc = self._open_index()[member].tolist()
        data = os.pread(self._descriptor(tar), rows * self._row_bytes, offset)
        if len(data) != rows * self._row_bytes or zlib.crc32(data) != crc:
            raise DamagedShard(
                f"{self._tar_path(tar)} is damaged: member {member:09d}.npy fails its CRC; prepare this shard set again"
            )
        self._checked[member] = True

    def _descriptor(self, tar: int) -> int:
        descriptor = self._files.get(tar)
        if descriptor is not None:
            return descriptor
        path = self._tar_path(tar)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DamagedShard(f"{path} cannot be opened: {error.strerror}") from error
        expected = self.manifest["tars"][tar]["size"]
        size = os.fstat(descriptor).st_size
        if size != expected:
            os.close(descriptor)
            raise DamagedShard(f"{path} has {size} bytes instead of {expected}: prepare this shard set again")
        if len(self._files) >= _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        self._files[tar] = descriptor
        return descriptor

    def _tar_path(self, tar: int) -> Path:
        return self.directory / self.manifest["tars"][tar]["file"]


def _read_manifest(directory: Path) -> tuple[dict[str, Any], str]:
    path = directory / "manifest.json"
    try:
        content = path.read_bytes()
    except OSError as error:
        message = f"{directory} is no shard set ({path.name}: {error.strerror}): run `trestle prepare`"
        raise BadShards(message) from error
    try:
        manifest = json.loads(content)
        version = manifest["format_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise BadShards(f"{path} is no shard manifest: run `trestle prepare` again") from error
    if version != FORMAT_VERSION:
        raise BadShards(f"{directory} has shard format {version}, this version reads {FORMAT_VERSION}: prepare again")
    names = [tar["file"] for tar in manifest["tars"]]
    if any(Path(name).name != name for name in names):
        raise BadShards(f"{path} names a file outside its folder")
    return manifest, hashlib.sha256(content).hexdigest()


def _load_array(path: Path, sha256: str, mapped: bool = False) -> NDArray[np.int64]:
    try:
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise DamagedShard(f"{path} is damaged: prepare this shard set again")
        array: NDArray[np.int64] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except OSError as error:
        raise DamagedShard(f"{path} cannot be read: {error.strerror}") from error
    return array
