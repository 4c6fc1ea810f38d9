"""The store that a shard set lies in: a folder, or a URL that is read in ranges through fsspec. Nothing is listed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import CacheConfig
from data_pipeline.errors import BadShards, BadTokenizer, DamagedShard
from data_pipeline.locations import PACKAGES, is_remote
from data_pipeline.retrying import LOCAL, REMOTE, Corrupt, reason
from data_pipeline.shard_cache import ShardCache, open_cache

TIMEOUT_SECONDS = 30.0
"""Of one attempt; a member is about 1 MiB."""

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"


class Store(Protocol):
    """The small files of a shard set; its members are read by `shard_members`."""

    location: str

    def manifest(self) -> bytes:
        """The content of manifest.json. Raises OSError for one that is not there, DamagedShard."""

    def array(self, name: str, sha256: str) -> NDArray[np.int64]:
        """A .npy file of the given checksum, mapped read-only. Raises DamagedShard."""

    def tokenizer(self, name: str = TOKENIZER) -> Path:
        """Where the tokenizer's file, from beside the shard set, lies on this machine. Raises BadTokenizer."""

    def path(self, name: str) -> str:
        """A file's name for messages."""


def open_store(location: str, cache: CacheConfig) -> LocalStore | RemoteStore:
    """The store behind a recipe's `shards`. Raises BadShards."""
    return RemoteStore(location, open_cache(cache)) if is_remote(location) else LocalStore(location)


class LocalStore:
    """A folder."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.directory = Path(location)

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def manifest(self) -> bytes:
        return (self.directory / MANIFEST).read_bytes()

    def array(self, name: str, sha256: str) -> NDArray[np.int64]:
        path = self.directory / name

        def load() -> NDArray[np.int64]:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise DamagedShard(f"{path} is damaged: prepare this shard set again")
            return _mapped(path)

        try:
            return LOCAL.attempt(str(path), load)
        except OSError as error:
            raise DamagedShard(f"{path} cannot be read: {error.strerror}") from error

    def tokenizer(self, name: str = TOKENIZER) -> Path:
        return self.directory.parent / name


class RemoteStore:
    """A URL. What is fetched of it goes through the node's cache, under names that are hashes."""

    def __init__(self, location: str, cache: ShardCache) -> None:
        self.location = location.rstrip("/")
        self.cache = cache
        self._lock = threading.Lock()
        self._opened: tuple[int, Any] | None = None
        self._tokenizers: dict[str, Path] = {}
        self._filesystem()  # a package that is missing is told at once

    def path(self, name: str) -> str:
        return f"{self.location}/{name}"

    def manifest(self) -> bytes:
        """Fetched once in a process: a shard set is never changed in place."""
        url = self.path(MANIFEST)
        with _MANIFESTS_LOCK:
            if url not in _MANIFESTS:
                _MANIFESTS[url] = REMOTE.attempt(url, lambda: self._fetch(url))
            return _MANIFESTS[url]

    def array(self, name: str, sha256: str) -> NDArray[np.int64]:
        url = self.path(name)

        def fetch() -> bytes:
            content = self._fetch(url)
            if hashlib.sha256(content).hexdigest() != sha256:
                raise Corrupt("its checksum is not the manifest's")
            return content

        for _ in range(2):
            descriptor = self.cache.open(sha256, lambda: attempt_to_fetch(url, fetch))
            with open(descriptor, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                    return _mapped(f"/proc/self/fd/{descriptor}")
            self.cache.discard(sha256)
        raise DamagedShard(f"the copy of {url} in {self.cache.directory} is damaged again and again: is the disk ill?")

    def tokenizer(self, name: str = TOKENIZER) -> Path:
        if name in self._tokenizers:
            return self._tokenizers[name]
        url = f"{self.location.rpartition('/')[0]}/{name}"
        try:
            content = REMOTE.attempt(url, lambda: self._fetch(url))
        except FileNotFoundError:
            raise BadTokenizer(f"there is no {url}; put the {name} of these shards there") from None
        self._tokenizers[name] = self.cache.keep(content, name)
        return self._tokenizers[name]

    def range(self, name: str, offset: int, size: int) -> bytes:
        """So many bytes of a file: one attempt. Raises Corrupt if fewer came, BadShards if ranges are not answered."""
        content = self._fetch(self.path(name), offset, offset + size)
        if len(content) > size:
            raise BadShards(
                f"{self.path(name)}: the server does not answer range requests; serve the shards by another"
            )
        if len(content) < size:
            raise Corrupt(f"{len(content)} bytes came instead of {size}")
        return content

    def _fetch(self, url: str, start: int | None = None, end: int | None = None) -> bytes:
        files = self._filesystem()
        if not files.async_impl:
            return bytes(files.cat_file(url, start, end))
        reading = asyncio.wait_for(files._cat_file(url, start=start, end=end), TIMEOUT_SECONDS)
        try:
            return bytes(asyncio.run_coroutine_threadsafe(reading, files.loop).result())
        except TimeoutError:
            raise TimeoutError(f"no answer within {TIMEOUT_SECONDS:.0f} s") from None

    def _filesystem(self) -> Any:
        """fsspec's, one a process: its threads do not survive a fork."""
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = (os.getpid(), _filesystem(self.location))
            return self._opened[1]


_MANIFESTS: dict[str, bytes] = {}
_MANIFESTS_LOCK = threading.Lock()


def attempt_to_fetch(url: str, fetch: Callable[[], bytes]) -> bytes:
    """With the patience for remote stores. Raises DamagedShard, also for what is not there."""
    try:
        return REMOTE.attempt(url, fetch)
    except OSError as error:
        raise DamagedShard(f"{url} cannot be read: {reason(error)}") from error


def _filesystem(location: str) -> Any:
    scheme = location.partition(":")[0]
    missing = f"{location} needs the Python package {PACKAGES[scheme]}: pip install {PACKAGES[scheme]}"
    try:
        import fsspec

        # Compressed answers would have other ranges than the file.
        options = {"headers": {"Accept-Encoding": "identity"}} if scheme.startswith("http") else {}
        return fsspec.filesystem(scheme, skip_instance_cache=True, **options)
    except ImportError as error:
        raise BadShards(missing) from error


def _mapped(path: str | Path) -> NDArray[np.int64]:
    array: NDArray[np.int64] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
