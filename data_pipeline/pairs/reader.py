"""One corpus's pairs by position, in a folder or behind a URL, each checked by its CRC whenever it is read.

Nothing grows with the data but the mapped indices. Several threads read side by side; reading is safe after a fork.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import CacheConfig
from data_pipeline.errors import BadTokenizer
from data_pipeline.pairs.shards import BLOCK, FORMAT_VERSION, KIND, caption_offset
from data_pipeline.pairs.tokenizers import FILES, CaptionTokenizer, open_caption_tokenizer
from data_pipeline.remote_members import RemoteMembers
from data_pipeline.shard_members import DamagedMember, Layout, LocalMembers
from data_pipeline.shard_reader import read_manifest
from data_pipeline.shard_store import RemoteStore, open_store

__all__ = ["DamagedMember", "PairSet"]

_AT_ONCE = 8


class PairSet:
    """One corpus of pairs. `location` is the folder with manifest.json, or its URL; `cache` is for URLs.

    Raises BadShards if it is no complete shard set of pairs of a known format, DamagedShard (with the file's name) if
    bytes are missing or changed; if they are a single pair's, its subclass DamagedMember, whose `member` is the pair.
    """

    def __init__(self, location: str | Path, cache: CacheConfig | None = None) -> None:
        self._store = open_store(str(location), cache or CacheConfig())
        self.location = self._store.location
        self.remote = isinstance(self._store, RemoteStore)
        self.manifest, self.manifest_sha256 = read_manifest(self._store, KIND, FORMAT_VERSION)
        m = self.manifest
        self.name: str = m["name"]
        self.tokenizer_sha256: str = m["tokenizer_sha256"]
        self.samples: int = m["samples"]
        self.rows_per_member: int = m["rows_per_member"]
        self.samples_per_damage = 1  # whatever else of its member has been read before or not
        self.members: int = m["members"]
        self._opened: tuple[LocalMembers | RemoteMembers, NDArray[Any]] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.samples

    @property
    def tokenizer_path(self) -> Path:
        """The captions' tokenizer, as `caption_tokenizer`."""
        return self.caption_tokenizer().path

    def caption_tokenizer(self) -> CaptionTokenizer:
        """Of the files beside the shard set that can be one, that which it was made with. Raises BadTokenizer."""
        found = []
        for name in FILES:
            try:
                path = self._store.tokenizer(name)
            except BadTokenizer:  # there is none of that name behind the URL
                continue
            if path.is_file():
                found.append(path)
                tokenizer = open_caption_tokenizer(path)
                if tokenizer.sha256 == self.tokenizer_sha256:
                    return tokenizer
        if found:
            raise BadTokenizer(f"{found[0]} is not the tokenizer that {self.name} was made with")
        raise BadTokenizer(
            f"beside {self.location} lies no {' or '.join(FILES)}: put the tokenizer of its captions there"
        )

    def read(self, position: int) -> tuple[bytes, str]:
        """The picture's file and the caption at `position`, in [0, samples). Raises DamagedMember of the position."""
        if not 0 <= position < self.samples:
            raise IndexError(f"{self.location}: samples go from 0 to {self.samples - 1}")
        with self._lock:
            source, pairs = self._open()
        try:
            return self._read(source, position, *pairs[position].tolist())
        except DamagedMember as error:
            raise DamagedMember(str(error), position) from error

    def fetch_ahead(self, positions: NDArray[np.int64]) -> None:
        """Begins to fetch the members of samples that will be read soon; returns at once."""
        if self.remote:
            with self._lock:
                source, _ = self._open()
            source.fetch_ahead(np.unique(positions // self.rows_per_member).tolist())

    def verify(self, progress: Callable[[int], None] = lambda done: None) -> None:
        """Checks every member's CRC at its source, and in a folder that each pair lies where the index says.

        `progress` is told how many members are done. Raises DamagedShard.
        """
        with self._lock:
            source, pairs = self._open()
        if not self.remote:
            for member in range(self.members):
                source.check(member)
                self._check_pairs(source, pairs, member)
                progress(member + 1)
            return
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for done, _ in enumerate(pool.map(source.check_source, range(self.members)), 1):
                progress(done)

    def close(self) -> None:
        """Closes the tars that are open; reading opens them again."""
        with self._lock:
            if self._opened is not None:
                self._opened[0].close()

    def _read(
        self, source: LocalMembers | RemoteMembers, position: int, start: int, picture: int, caption: int, crc: int
    ) -> tuple[bytes, str]:
        member, text = position // self.rows_per_member, caption_offset(start, picture)
        for _ in range(2):
            data = source.part(member, start, text + caption - start)
            view = memoryview(data)
            if zlib.crc32(view[text - start :], zlib.crc32(view[:picture])) == crc:
                return data[:picture], data[text - start :].decode("utf-8", errors="replace")
            if source.forget(member):  # a copy, which may be what is damaged: another one, or why there is none
                source.check(member)
        tar = source.tar_path(source.place(member).tar)
        message = f"{tar} is damaged: pair {position:09d} fails its CRC; prepare this shard set again"
        raise DamagedMember(message, member)

    def _open(self) -> tuple[LocalMembers | RemoteMembers, NDArray[Any]]:
        if self._opened is None:
            pairs = self._store.array("pairs.npy", self.manifest["pairs_sha256"])
            index = self._store.array("index.npy", self.manifest["index_sha256"])
            layout = Layout(self.manifest["tars"], index, 1, self.manifest_sha256, self.rows_per_member)
            store = self._store
            members = RemoteMembers(store, layout) if isinstance(store, RemoteStore) else LocalMembers(store, layout)
            self._opened = (members, pairs)
        return self._opened

    def _check_pairs(self, source: LocalMembers | RemoteMembers, pairs: NDArray[Any], member: int) -> None:
        first = member * self.rows_per_member
        for number, (start, picture, caption, crc) in enumerate(
            pairs[first : first + self.rows_per_member].tolist(), first
        ):
            text = caption_offset(start, picture)
            data = source.part(member, start, text + caption - start)
            header = data[text - start - BLOCK : text - start]
            right = zlib.crc32(data[text - start :], zlib.crc32(data[:picture])) == crc
            if not right or not header.startswith(f"{number:09d}.txt\0".encode()):
                raise DamagedMember(
                    f"{self.location}: pair {number:09d} is not where its index says: prepare this shard set again",
                    member,
                )
