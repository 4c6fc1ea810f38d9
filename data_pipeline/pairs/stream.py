"""The stream of pictures with captions: batch b is a pure function of (data, seed, mix, augmentation, b).

Which pairs a batch has is `mixed_stream.py`'s; here they are read, decoded, cropped and tokenised. A sample's crop is
drawn from (seed, sample number), so that a resumed run sees the same. A picture that cannot be decoded is counted, and
another pair of its corpus, picture and caption, stands in its place: a pure function of corpus and position.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.batch import PairBatch, slice_of
from data_pipeline.config import DataConfig
from data_pipeline.errors import BadConfig, DamagedShard
from data_pipeline.mixed_stream import MixedStream
from data_pipeline.pairs.augment import Augmentation, draws
from data_pipeline.pairs.decoding import Decoders
from data_pipeline.pairs.pictures import BadPicture, augmented
from data_pipeline.pairs.reader import PairSet
from data_pipeline.pairs.tokenizers import CaptionTokenizer
from data_pipeline.permutation import derive_key, permute
from data_pipeline.validation_set import check_fit, fitting

__all__ = ["PairBatch", "PairStream"]

_CANDIDATES = 16
_TOLD = 20
_log = logging.getLogger("trestle.data")


class PairStream(MixedStream[PairSet]):
    """Pairs of images [3, image_size, image_size] and captions [context_length]; see `MixedStream`.

    `sequence_length` is the context_length: what a sample counts in tokens.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        exceptions: Sequence[dict[str, Any]] = (),
        *,
        image_size: int,
        context_length: int,
    ) -> None:
        if not config.mix:
            raise BadConfig("data.mix is empty: name at least one shard set")
        if image_size < 1 or context_length < 2:
            raise BadConfig(f"pictures of {image_size} pixels and captions of {context_length} tokens hold nothing")
        sets = fitting([PairSet(source.shards, config.cache) for source in config.mix], "data.mix")
        for source in config.validation:
            check_fit(sets[0], PairSet(source.shards, config.cache), "data.validation")
        self.image_size = image_size
        self._augmentation = Augmentation.of(config.images)
        self._decoders = Decoders(config.images.workers)
        self._count_lock = threading.Lock()
        self.substituted_pictures = 0
        """Undecodable pictures in whose place this process has read others, those read ahead included."""
        super().__init__(config, seed, exceptions, sets, context_length)
        self._tokenizer = sets[0].caption_tokenizer()
        self.vocab_size = self._tokenizer.vocab_size

    @property
    def tokenizer_path(self) -> Path:
        """The file of the captions' tokenizer, beside the shard sets."""
        return self._tokenizer.path

    def caption_tokenizer(self) -> CaptionTokenizer:
        """What the shards' captions are encoded with."""
        return self._tokenizer

    def batch(self, start: int, size: int, index: int = 0, count: int = 1) -> PairBatch:
        """Slice `index` of `count` contiguous slices of consumed samples start ... start + size."""
        consumed = slice_of(start, size, index, count)
        corpus, position = self._locate(consumed)
        era, samples = self._replay.history.resolve(consumed)
        numbers = draws(self._seed, samples).tolist()
        images = np.empty((len(consumed), 3, self.image_size, self.image_size), dtype=np.uint8)
        captions = [""] * len(consumed)
        of_era = {e: Augmentation.from_json(self._replay.eras[e].described["augmentation"]) for e in set(era.tolist())}
        augmentations = [of_era[e] for e in era.tolist()]
        corpora, positions = corpus.tolist(), position.tolist()

        def one(i: int) -> None:
            captions[i] = self._pair(corpora[i], positions[i], augmentations[i], numbers[i], images[i])

        self._decoders.each(len(consumed), one)
        return PairBatch(images, self._tokenizer.encode(captions, self.sequence_length), corpus)

    def fingerprint(self) -> dict[str, Any]:
        """As of `MixedStream`, with the size of the pictures; the augmentation may be changed."""
        return {**super().fingerprint(), "image_size": self.image_size}

    def close(self) -> None:
        """Ends the decoding threads and closes the files that are open."""
        self._decoders.close()
        super().close()

    def _described_besides(self) -> dict[str, Any]:
        return {"augmentation": self._augmentation.to_json()}

    def _pair(
        self, number: int, position: int, augmentation: Augmentation, drawn: list[float], image: NDArray[np.uint8]
    ) -> str:
        """Puts the picture into `image`, and returns the caption, of a corpus's pair or of that in its place."""
        tried: list[str] = []
        shard_set = self._sets[number]
        for candidate in self._candidates(number, position):
            picture, caption = self._read(number, np.array([candidate]), lambda p: shard_set.read(int(p[0])))
            try:
                augmented(picture, augmentation, drawn, image)
            except BadPicture as error:
                tried.append(str(error))
                continue
            if tried:
                self._tell(number, position, tried[0])
            return caption
        raise DamagedShard(
            f"the picture of pair {position:09d} of {shard_set.name} and those of the {len(tried) - 1} pairs "
            f"that could stand in for it cannot be decoded (the first: {tried[0]}): prepare this shard set again"
        )

    def _candidates(self, number: int, position: int) -> Iterator[int]:
        """The pair, and then, in an order of its own, those that may stand in for it."""
        yield position
        name, samples = self._sets[number].name, self._sets[number].samples
        candidates = np.arange(min(samples, _CANDIDATES + 1))
        keys = np.full(len(candidates), derive_key(0, "picture", name, position))
        yield from [other for other in permute(candidates, keys, samples).tolist() if other != position][:_CANDIDATES]

    def _tell(self, number: int, position: int, why: str) -> None:
        with self._count_lock:
            self.substituted_pictures += 1
            told = self.substituted_pictures
        if told <= _TOLD:
            last = "; further ones are only counted" if told == _TOLD else ""
            name = self._sets[number].name
            _log.warning("the picture of pair %09d of %s is replaced: %s%s", position, name, why, last)
