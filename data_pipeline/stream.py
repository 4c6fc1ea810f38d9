"""The stream of text: batch b is a pure function of (data, seed, mix, b), for any number of ranks and restarts.

Which samples a batch has is `mixed_stream.py`'s; here they become tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.batch import Batch, slice_of
from data_pipeline.config import DataConfig
from data_pipeline.errors import BadConfig, BadTokenizer
from data_pipeline.mixed_stream import MixedStream
from data_pipeline.prefetch import Prefetcher
from data_pipeline.shard_reader import ShardSet
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.validation_set import ValidationSet, check_fit, open_sets

__all__ = ["Batch", "Prefetcher", "Stream", "ValidationSet", "open_sets"]


class Stream(MixedStream[ShardSet]):
    """Packed samples of text; see `MixedStream`."""

    def __init__(self, config: DataConfig, seed: int, exceptions: Sequence[dict[str, Any]] = ()) -> None:
        if not config.mix:
            raise BadConfig("data.mix is empty: name at least one shard set")
        sets = open_sets(config.mix, "data.mix", config.cache)
        for source in config.validation:
            check_fit(sets[0], ShardSet(source.shards, config.cache), "data.validation")
        super().__init__(config, seed, exceptions, sets, sets[0].sequence_length)
        self.vocab_size = sets[0].vocab_size

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer.model beside the shard sets. Raises BadTokenizer if it is not there."""
        return self._sets[0].tokenizer_path

    def batch(self, start: int, size: int, index: int = 0, count: int = 1) -> Batch:
        """Slice `index` of `count` contiguous slices of consumed samples start ... start + size."""
        corpus, position = self._locate(slice_of(start, size, index, count))
        tokens = np.empty((len(corpus), self.sequence_length + 1), dtype=np.int64)
        for number in range(len(self._sets)):
            mine = corpus == number
            if mine.any():
                tokens[mine] = self._read(number, position[mine], self._sets[number].read)
        return Batch(tokens, corpus)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the shard sets. Raises BadTokenizer if it is not the shards' own."""
        tokenizer = Tokenizer(self.tokenizer_path)
        if tokenizer.sha256 != self.tokenizer_sha256:
            raise BadTokenizer(f"{self.tokenizer_path} is not the tokenizer that {self.corpora[0]} was made with")
        return tokenizer
