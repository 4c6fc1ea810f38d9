"""Held-out pairs, as a model is evaluated on them: no augmentation, the middle of each picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.batch import PairBatch, slice_of
from data_pipeline.config import CacheConfig, ShardSource
from data_pipeline.errors import BadConfig, DamagedShard
from data_pipeline.pairs.decoding import Decoders
from data_pipeline.pairs.pictures import BadPicture, evaluated
from data_pipeline.pairs.reader import PairSet
from data_pipeline.pairs.tokenizers import CaptionTokenizer
from data_pipeline.validation_set import fitting


class PairValidationSet:
    """Held-out shard sets of pairs, one after the other, in order and without shuffling. `cache` is for URLs.

    workers: threads that decode. A picture that cannot be decoded is an error here: a score must not depend on what
    stands in for it.
    """

    def __init__(
        self,
        sources: Sequence[ShardSource],
        cache: CacheConfig | None = None,
        *,
        image_size: int,
        context_length: int,
        workers: int = 4,
    ) -> None:
        if not sources:
            raise BadConfig("data.validation is empty: name at least one shard set, or do not validate")
        self._sets = fitting([PairSet(source.shards, cache) for source in sources], "data.validation")
        self._first = np.cumsum([0, *(len(s) for s in self._sets)])
        self._decoders = Decoders(workers)
        self._tokenizer = self._sets[0].caption_tokenizer()
        self.names = [s.name for s in self._sets]
        self.remote = any(shard_set.remote for shard_set in self._sets)
        self.image_size, self.sequence_length = image_size, context_length
        self.vocab_size = self._tokenizer.vocab_size
        self.tokenizer_sha256 = self._sets[0].tokenizer_sha256

    def __len__(self) -> int:
        return int(self._first[-1])

    def caption_tokenizer(self) -> CaptionTokenizer:
        """What the captions are encoded with."""
        return self._tokenizer

    def batch(self, start: int, size: int, index: int = 0, count: int = 1) -> PairBatch:
        """Slice `index` of `count` of samples start ... start + size. Raises IndexError past the end, DamagedShard."""
        samples = self._checked(start, size, index, count)
        images = np.empty((len(samples), 3, self.image_size, self.image_size), dtype=np.uint8)
        captions = [""] * len(samples)

        def one(i: int) -> None:
            shard_set, position = self._where(int(samples[i]))
            picture, captions[i] = shard_set.read(position)
            try:
                evaluated(picture, images[i])
            except BadPicture as error:
                raise DamagedShard(
                    f"the picture of pair {position:09d} of {shard_set.name} cannot be decoded ({error}): prepare this "
                    "shard set again"
                ) from error

        self._decoders.each(len(samples), one)
        corpus = np.searchsorted(self._first, samples, side="right") - 1
        return PairBatch(images, self._tokenizer.encode(captions, self.sequence_length), corpus.astype(np.int64))

    def captions(self, start: int, size: int) -> list[str]:
        """The captions of samples start ... start + size, as they were written."""
        found = []
        for sample in self._checked(start, size, 0, 1).tolist():
            shard_set, position = self._where(sample)
            found.append(shard_set.read(position)[1])
        return found

    def fetch_ahead(self, start: int, size: int, index: int = 0, count: int = 1) -> None:
        """Begins to fetch what `batch` will read of remote shard sets; returns at once."""
        samples = slice_of(start, size, index, count)
        for shard_set, first in zip(self._sets, self._first.tolist(), strict=False):
            shard_set.fetch_ahead(samples[(samples >= first) & (samples < first + len(shard_set))] - first)

    def close(self) -> None:
        """Ends the decoding threads and closes the files that are open."""
        self._decoders.close()
        for shard_set in self._sets:
            shard_set.close()

    def _checked(self, start: int, size: int, index: int, count: int) -> NDArray[np.int64]:
        if start < 0 or start + size > len(self):
            raise IndexError(f"the validation set has {len(self)} samples, not {start + size}")
        return slice_of(start, size, index, count)

    def _where(self, sample: int) -> tuple[PairSet, int]:
        number = int(np.searchsorted(self._first, sample, side="right")) - 1
        return self._sets[number], sample - int(self._first[number])
