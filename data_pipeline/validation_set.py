"""Held-out shard sets, and how the shard sets of one list fit together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from data_pipeline.batch import Batch, slice_of
from data_pipeline.config import CacheConfig, ShardSource
from data_pipeline.errors import BadConfig, BadShards
from data_pipeline.sample_set import SampleSet
from data_pipeline.shard_reader import ShardSet


class ValidationSet:
    """Held-out shard sets, one after the other, in order and without shuffling. `cache` is for those behind a URL."""

    def __init__(self, sources: Sequence[ShardSource], cache: CacheConfig | None = None) -> None:
        if not sources:
            raise BadConfig("data.validation is empty: name at least one shard set, or do not validate")
        self._sets = open_sets(sources, "data.validation", cache)
        self._first = np.cumsum([0, *(len(s) for s in self._sets)])
        self.names = [s.name for s in self._sets]
        self.remote = any(shard_set.remote for shard_set in self._sets)
        self.sequence_length = self._sets[0].sequence_length
        self.vocab_size = self._sets[0].vocab_size
        self.tokenizer_sha256 = self._sets[0].tokenizer_sha256

    def __len__(self) -> int:
        return int(self._first[-1])

    def batch(self, start: int, size: int, index: int = 0, count: int = 1) -> Batch:
        """Slice `index` of `count` of samples start ... start + size. Raises IndexError past the end."""
        samples = slice_of(start, size, index, count)
        if start < 0 or start + size > len(self):
            raise IndexError(f"the validation set has {len(self)} samples, not {start + size}")
        corpus = np.searchsorted(self._first, samples, side="right") - 1
        tokens = np.empty((len(samples), self.sequence_length + 1), dtype=np.int64)
        for number, shard_set in enumerate(self._sets):
            mine = corpus == number
            if mine.any():
                tokens[mine] = shard_set.read(samples[mine] - self._first[number])
        return Batch(tokens, corpus.astype(np.int64))

    def fetch_ahead(self, start: int, size: int, index: int = 0, count: int = 1) -> None:
        """Begins to fetch what `batch` will read of remote shard sets; returns at once."""
        samples = slice_of(start, size, index, count)
        for shard_set, first in zip(self._sets, self._first.tolist(), strict=False):
            shard_set.fetch_ahead(samples[(samples >= first) & (samples < first + len(shard_set))] - first)


def open_sets(sources: Sequence[ShardSource], key: str, cache: CacheConfig | None = None) -> list[ShardSet]:
    """Opens the shard sets of one list and checks that they fit together. `key`: the recipe's key, for messages."""
    return fitting([ShardSet(source.shards, cache) for source in sources], key)


S = TypeVar("S", bound=SampleSet)


def fitting(sets: list[S], key: str) -> list[S]:
    """The shard sets of one list, checked to fit together. Raises BadShards."""
    first = sets[0]
    for shard_set in sets:
        if not shard_set.samples:
            raise BadShards(f"{key}: {shard_set.location} has no samples")
        check_fit(first, shard_set, key)
    names = [shard_set.name for shard_set in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise BadShards(f'{key}: two shard sets are named "{twice}": name each once, with the sum of the weights')
    return sets


def check_fit(first: SampleSet, other: SampleSet, key: str) -> None:
    """Raises BadShards for two shard sets that one model cannot read."""
    if isinstance(first, ShardSet) and isinstance(other, ShardSet) and other.sequence_length != first.sequence_length:
        raise BadShards(
            f"{key}: {first.location} has sequence_length {first.sequence_length}, {other.location} has "
            f"{other.sequence_length}: prepare them with the same one"
        )
    if other.tokenizer_sha256 != first.tokenizer_sha256:
        raise BadShards(
            f"{key}: {first.location} and {other.location} were made with different tokenizers: "
            "prepare them with the same one"
        )
