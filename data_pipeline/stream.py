"""The stream: batch b is a pure function of (data, seed, mix, b), for any number of ranks, workers and restarts.

consumed number --exceptions--> sample g --mix--> corpus, number in it --epoch, permutation--> position --> tokens

Each step is closed form, so that a resume is one integer and a rank reads only its slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import DataConfig, ShardSource
from data_pipeline.errors import BadConfig, BadShards, BadTokenizer, DataMismatch
from data_pipeline.mixing import Mix
from data_pipeline.permutation import derive_key, permute
from data_pipeline.prefetch import Prefetcher
from data_pipeline.shard_reader import ShardSet
from data_pipeline.tokenizer import Tokenizer

__all__ = ["Batch", "Prefetcher", "Stream", "ValidationSet", "open_sets"]

STATE_VERSION = 1
#: Makes the keys of successive epochs unrelated.
_EPOCH_STRIDE = np.int64(0x1E3779B97F4A7C15)


@dataclass(frozen=True)
class Batch:
    """A slice of a batch."""

    tokens: NDArray[np.int64]
    """[n, sequence_length + 1]: inputs are [:, :-1], targets [:, 1:]."""
    corpus: NDArray[np.int64]
    """[n]: index into the stream's `corpora` (the validation set's `names`)."""


class Stream:
    """The weighted, shuffled, endless mix of `config.mix`.

    Each corpus is shuffled anew every epoch. exceptions: as in `state()`, for a resume.
    Raises BadConfig, BadShards or BadTokenizer for a mix that does not fit together; reading raises DamagedShard.
    """

    def __init__(self, config: DataConfig, seed: int, exceptions: Sequence[dict[str, Any]] = ()) -> None:
        if not config.mix:
            raise BadConfig("data.mix is empty: name at least one shard set")
        self._sets = open_sets(config.mix, "data.mix")
        for source in config.validation:
            _check_fit(self._sets[0], ShardSet(source.shards), "data.validation")
        self._mix = Mix([source.weight for source in config.mix], seed)
        self._keys = [derive_key(seed, "corpus", shard_set.name) for shard_set in self._sets]
        self._seed = seed
        self._exceptions = [_checked_exception(e) for e in exceptions]
        self.corpora = [shard_set.name for shard_set in self._sets]
        self.weights = dict(zip(self.corpora, self._mix.weights, strict=True))
        self.sequence_length = self._sets[0].sequence_length
        self.vocab_size = self._sets[0].vocab_size
        self.tokenizer_sha256 = self._sets[0].tokenizer_sha256
        self.tokenizer_path: Path = self._sets[0].tokenizer_path

    def batch(self, start: int, size: int, index: int = 0, count: int = 1) -> Batch:
        """Slice `index` of `count` contiguous slices of consumed samples start ... start + size."""
        corpus, position = self.locate(_slice(start, size, index, count))
        tokens = np.empty((len(corpus), self.sequence_length + 1), dtype=np.int64)
        for number, shard_set in enumerate(self._sets):
            mine = corpus == number
            if mine.any():
                tokens[mine] = shard_set.read(position[mine])
        return Batch(tokens, corpus)

    def locate(self, consumed: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For consumed sample numbers [n]: corpus index [n] and sample position in its shard set [n]."""
        corpus, number = self._mix.assign(self._shifted(consumed))
        position = np.empty_like(number)
        for i, shard_set in enumerate(self._sets):
            mine = corpus == i
            epoch, within = np.divmod(number[mine], shard_set.samples)
            position[mine] = permute(within, np.int64(self._keys[i]) + epoch * _EPOCH_STRIDE, shard_set.samples)
        return corpus, position

    def skip(self, at: int, count: int) -> None:
        """From consumed sample `at` on, sample numbers are shifted by `count` (a range of data is left out)."""
        self._exceptions.append(_checked_exception({"kind": "skip", "at": at, "count": count}))

    def epochs(self, samples: int) -> dict[str, float]:
        """Passes over each corpus after `samples` consumed samples; what was skipped does not count."""
        drawn = np.zeros(len(self._sets), dtype=np.int64)
        for first, end in self._drawn(samples):
            drawn += np.array(self._mix.counts(end)) - np.array(self._mix.counts(first))
        return {s.name: int(n) / s.samples for s, n in zip(self._sets, drawn, strict=True)}

    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the shard sets. Raises BadTokenizer if it is not the shards' own."""
        tokenizer = Tokenizer(self.tokenizer_path)
        if tokenizer.sha256 != self.tokenizer_sha256:
            raise BadTokenizer(f"{self.tokenizer_path} is not the tokenizer that {self.corpora[0]} was made with")
        return tokenizer

    def fingerprint(self) -> dict[str, Any]:
        """What the stream is a function of: data (hashes of the manifests), seed and mix. JSON-able."""
        return {
            "seed": self._seed,
            "sequence_length": self.sequence_length,
            "tokenizer_sha256": self.tokenizer_sha256,
            "mix": [
                {"name": s.name, "weight": w, "samples": s.samples, "manifest_sha256": s.manifest_sha256}
                for s, w in zip(self._sets, self._mix.weights, strict=True)
            ],
        }

    def state(self, samples: int = 0) -> dict[str, Any]:
        """The position after `samples` consumed samples (the caller counts them, on the optimizer step). JSON-able."""
        return {
            "format_version": STATE_VERSION,
            "samples": samples,
            "exceptions": [dict(e) for e in self._exceptions],
            "fingerprint": self.fingerprint(),
        }

    def check_state(self, state: dict[str, Any]) -> None:
        """Raises DataMismatch, naming the difference, unless this stream continues the one that gave `state`."""
        if state.get("format_version") != STATE_VERSION:
            version = state.get("format_version")
            raise DataMismatch(f"the data state has format {version}, this version reads {STATE_VERSION}")
        difference = _difference(state["fingerprint"], self.fingerprint())
        if difference:
            raise DataMismatch(f"the data are not those of the checkpoint: {difference}")
        if self._exceptions[: len(state["exceptions"])] != state["exceptions"]:
            raise DataMismatch("the stream was not given the exceptions (skipped ranges) of the checkpoint's state")

    def close(self) -> None:
        """Closes the files that are open."""
        for shard_set in self._sets:
            shard_set.close()

    def _shifted(self, consumed: NDArray[np.int64]) -> NDArray[np.int64]:
        # The newest first: it speaks of numbers as they were under those before it. A run that goes back past an
        # exception leaves out what it has drawn since, which that exception had shifted.
        shifted = consumed
        for exception in reversed(self._exceptions):
            shifted = shifted + np.where(shifted >= exception["at"], exception["count"], 0)
        return shifted

    def _drawn(self, samples: int) -> list[tuple[int, int]]:
        """The ranges of samples that consumed samples 0 ... `samples` are."""
        ranges = [(0, samples)]
        for exception in reversed(self._exceptions):
            at, count = exception["at"], exception["count"]
            ranges = [
                part
                for first, end in ranges
                for part in ((first, min(end, at)), (max(first, at) + count, end + count))
                if part[0] < part[1]
            ]
        return ranges


class ValidationSet:
    """Held-out shard sets, one after the other, in order and without shuffling."""

    def __init__(self, sources: Sequence[ShardSource]) -> None:
        if not sources:
            raise BadConfig("data.validation is empty: name at least one shard set, or do not validate")
        self._sets = open_sets(sources, "data.validation")
        self._first = np.cumsum([0, *(len(s) for s in self._sets)])
        self.names = [s.name for s in self._sets]
        self.sequence_length = self._sets[0].sequence_length
        self.vocab_size = self._sets[0].vocab_size
        self.tokenizer_sha256 = self._sets[0].tokenizer_sha256

    def __len__(self) -> int:
        return int(self._first[-1])

    def batch(self, start: int, size: int, index: int = 0, count: int = 1) -> Batch:
        """Slice `index` of `count` of samples start ... start + size. Raises IndexError past the end."""
        samples = _slice(start, size, index, count)
        if start < 0 or start + size > len(self):
            raise IndexError(f"the validation set has {len(self)} samples, not {start + size}")
        corpus = np.searchsorted(self._first, samples, side="right") - 1
        tokens = np.empty((len(samples), self.sequence_length + 1), dtype=np.int64)
        for number, shard_set in enumerate(self._sets):
            mine = corpus == number
            if mine.any():
                tokens[mine] = shard_set.read(samples[mine] - self._first[number])
        return Batch(tokens, corpus.astype(np.int64))


def open_sets(sources: Sequence[ShardSource], key: str) -> list[ShardSet]:
    """Opens the shard sets of one list and checks that they fit together. `key`: the recipe's key, for messages."""
    sets = [ShardSet(source.shards) for source in sources]
    first = sets[0]
    for shard_set in sets:
        if not len(shard_set):
            raise BadShards(f"{key}: {shard_set.directory} has no samples")
        _check_fit(first, shard_set, key)
    names = [shard_set.name for shard_set in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise BadShards(f'{key}: two shard sets are named "{twice}": name each once, with the sum of the weights')
    return sets


def _check_fit(first: ShardSet, other: ShardSet, key: str) -> None:
    if other.sequence_length != first.sequence_length:
        raise BadShards(
            f"{key}: {first.directory} has sequence_length {first.sequence_length}, {other.directory} has "
            f"{other.sequence_length}: prepare them with the same one"
        )
    if other.tokenizer_sha256 != first.tokenizer_sha256:
        raise BadShards(
            f"{key}: {first.directory} and {other.directory} were made with different tokenizers: "
            "prepare them with the same tokenizer.model"
        )


def _slice(start: int, size: int, index: int, count: int) -> NDArray[np.int64]:
    if not 0 <= index < count:
        raise ValueError(f"slice {index} of {count}")
    return np.arange(start + size * index // count, start + size * (index + 1) // count, dtype=np.int64)


def _checked_exception(exception: dict[str, Any]) -> dict[str, Any]:
    kind, at, count = exception.get("kind"), exception.get("at"), exception.get("count")
    if kind != "skip" or not isinstance(at, int) or not isinstance(count, int) or at < 0 or count < 0:
        raise DataMismatch(f"unknown exception in the data state: {exception}")
    return {"kind": "skip", "at": at, "count": count}


def _difference(saved: dict[str, Any], own: dict[str, Any]) -> str | None:
    for key in ("seed", "sequence_length", "tokenizer_sha256"):
        if saved[key] != own[key]:
            return f"{key} was {saved[key]} and is {own[key]}"
    before, now = ({m["name"]: m for m in fingerprint["mix"]} for fingerprint in (saved, own))
    if list(before) != list(now):
        return f"the mix was {', '.join(before)} and is {', '.join(now)}"
    for name, entry in before.items():
        if entry["weight"] != now[name]["weight"]:
            return f"the weight of {name} was {entry['weight']:.6g} and is {now[name]['weight']:.6g} (normalised)"
        if entry["manifest_sha256"] != now[name]["manifest_sha256"]:
            return f"the shards of {name} are others ({entry['samples']} samples then, {now[name]['samples']} now)"
    return None
