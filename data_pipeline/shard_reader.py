"""One corpus's samples by position, in a folder or behind a URL.

Nothing grows with the data but one byte a member (of about 1 MiB) and the mapped index. Reading is safe from several
threads and after a fork.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import CacheConfig
from data_pipeline.errors import BadShards
from data_pipeline.remote_members import RemoteMembers
from data_pipeline.retrying import reason
from data_pipeline.shard_members import DamagedMember, Layout, LocalMembers, Members
from data_pipeline.shard_store import MANIFEST, LocalStore, RemoteStore, Store, open_store
from data_pipeline.shards import FORMAT_VERSION

__all__ = ["DamagedMember", "ShardSet"]

_TAR_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_AT_ONCE = 8


class ShardSet:
    """One corpus. `location` is the folder with manifest.json, or its URL; `cache` is for URLs.

    Raises BadShards if it is no complete shard set of a known format, DamagedShard (with the file's name) if bytes are
    missing or changed; if they are a single member's, its subclass DamagedMember.
    """

    def __init__(self, location: str | Path, cache: CacheConfig | None = None) -> None:
        self._store = open_store(str(location), cache or CacheConfig())
        self.location = self._store.location
        self.remote = isinstance(self._store, RemoteStore)
        self.manifest, self.manifest_sha256 = read_manifest(self._store, "text", FORMAT_VERSION)
        m = self.manifest
        self.name: str = m["name"]
        self.sequence_length: int = m["sequence_length"]
        self.vocab_size: int = m["vocab_size"]
        self.tokenizer_sha256: str = m["tokenizer_sha256"]
        self.samples: int = m["samples"]
        self.tokens: int = m["tokens"]
        self.bytes: int = m["bytes"]
        self.rows_per_member: int = m["rows_per_member"]
        self.samples_per_damage = self.rows_per_member
        self._dtype = np.dtype(m["dtype"]).newbyteorder("<")
        self._members: Members | None = None
        self._checked = np.zeros(m["members"], dtype=bool)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.samples

    @property
    def members(self) -> int:
        """Members of the set."""
        return len(self._checked)

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer.model beside the shard sets, fetched if they are remote. Raises BadTokenizer if it is not."""
        return self._store.tokenizer()

    def counts(self) -> NDArray[np.int64]:
        """How often each token occurs in the corpus, int64 [vocab_size]."""
        return self._store.array("counts.npy", self.manifest["counts_sha256"])

    def read(self, positions: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
        """Samples at `positions` [n], each in [0, samples), as [n, sequence_length + 1] in the shards' dtype."""
        if len(positions) and (positions.min() < 0 or positions.max() >= self.samples):
            raise IndexError(f"{self.location}: samples go from 0 to {self.samples - 1}")
        out = np.empty((len(positions), self.sequence_length + 1), dtype=self._dtype)
        members, rows = np.divmod(positions, self.rows_per_member)
        with self._lock:
            source = self._open()
            unchecked = members[~self._checked[members]]
            if len(unchecked):
                unchecked = np.unique(unchecked)
                source.fetch_ahead(unchecked.tolist())  # side by side, while they are checked one by one
                for member in unchecked.tolist():
                    source.check(member)
                    self._checked[member] = True
            source.rows(out, members, rows)
        return out

    def fetch_ahead(self, positions: NDArray[np.int64]) -> None:
        """Begins to fetch the members of samples that will be read soon; returns at once."""
        if self.remote:
            with self._lock:
                source = self._open()
            source.fetch_ahead(np.unique(positions // self.rows_per_member).tolist())

    def verify(self, progress: Callable[[int], None] = lambda done: None) -> None:
        """Checks every member's CRC at its source, and the counts; `progress` is told how many are done.

        Raises DamagedShard.
        """
        self.counts()
        with self._lock:
            source = self._open()
            if not self.remote:
                for member in range(self.members):
                    source.check(member)
                    self._checked[member] = True
                    progress(member + 1)
                return
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for start in range(0, self.members, _AT_ONCE):
                chunk = range(start, min(start + _AT_ONCE, self.members))
                list(pool.map(source.check_source, chunk))
                progress(chunk.stop)

    def close(self) -> None:
        """Closes the tars that are open; reading opens them again."""
        with self._lock:
            if self._members is not None:
                self._members.close()

    def _open(self) -> Members:
        if self._members is None:
            index = self._store.array("index.npy", self.manifest["index_sha256"])
            row_bytes = (self.sequence_length + 1) * self._dtype.itemsize
            layout = Layout(self.manifest["tars"], index, row_bytes, self.manifest_sha256)
            self._members = _members_of(self._store, layout)
        return self._members


def _members_of(store: LocalStore | RemoteStore, layout: Layout) -> Members:
    return RemoteMembers(store, layout) if isinstance(store, RemoteStore) else LocalMembers(store, layout)


def kind_of(location: str, cache: CacheConfig | None = None) -> str:
    """What the samples of a shard set are: text, image-text. "text" where that is for `ShardSet` to find wrong."""
    try:
        manifest = json.loads(open_store(location, cache or CacheConfig()).manifest())
    except (OSError, ValueError):
        return "text"
    return str(manifest.get("kind", "text")) if isinstance(manifest, dict) else "text"


def read_manifest(store: Store, kind: str, known: int) -> tuple[dict[str, Any], str]:
    """The manifest of a shard set of this kind (text, image-text) and format, and its SHA-256. Raises BadShards."""
    path = store.path(MANIFEST)
    try:
        content = store.manifest()
    except OSError as error:
        message = f"{store.location} is no shard set ({MANIFEST}: {_why(error)}): run `trestle prepare`"
        raise BadShards(message) from error
    try:
        manifest = json.loads(content)
        version = manifest["format_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise BadShards(f"{path} is no shard manifest: run `trestle prepare` again") from error
    if manifest.get("kind", "text") != kind:
        raise BadShards(
            f"{store.location} is a shard set of {manifest.get('kind', 'text')}, but {kind} is wanted here: GPT trains "
            "on text, CLIP on image-text; name another shard set, or set model.family to what fits"
        )
    if version != known:
        raise BadShards(f"{store.location} has shard format {version}, this version reads {known}: prepare again")
    if not all(_TAR_NAME.fullmatch(str(tar["file"])) for tar in manifest["tars"]):
        raise BadShards(f"{path} names a file outside its folder")
    return manifest, hashlib.sha256(content).hexdigest()


def _why(error: OSError) -> str:
    return "there is none" if isinstance(error, FileNotFoundError) and not error.strerror else reason(error)
