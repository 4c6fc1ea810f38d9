"""The eras of a stream, in each of which one mix with its curriculum and shuffle holds: from a sample's number to a
corpus and a position in its shard set. A run has one era, and one more for each change of its data on a resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.batching import Duration
from data_pipeline.config import DataConfig
from data_pipeline.errors import BadConfig, DataMismatch
from data_pipeline.mixing import Curriculum
from data_pipeline.permutation import derive_key
from data_pipeline.sample_set import SampleSet
from data_pipeline.shuffling import Shuffle
from data_pipeline.stream_state import History


@dataclass(frozen=True)
class Corpus:
    """A corpus of an era. One whose data are not there any more has no `index`, and cannot be read."""

    name: str
    manifest_sha256: str
    samples: int
    key: int
    rows: int = 0
    """Samples in a member."""
    index: int | None = None
    """Its place among the stream's corpora."""


class Era:
    """From sample `first` on, what `described` says: mix, curriculum and shuffle of a fingerprint.

    left_off: where each known shard set (name, manifest) is, and in which shuffle; others begin at 0.
    """

    def __init__(
        self,
        described: dict[str, Any],
        seed: int,
        sets: Sequence[SampleSet],
        first: int,
        left_off: dict[tuple[str, str], tuple[int, Shuffle]],
    ) -> None:
        self.described = described
        self.corpora = [_corpus(entry, seed, sets) for entry in described["mix"]]
        self.shuffle = Shuffle(described["shuffle"].get("window"))
        names = [corpus.name for corpus in self.corpora]
        segments = [(s["from"], [s["weights"][name] for name in names]) for s in described["curriculum"]]
        if not segments or segments[0][0] > 0:
            segments.insert(0, (0, [entry["weight"] for entry in described["mix"]]))
        numbers = [self._next_number(corpus, left_off) for corpus in self.corpora]
        self.curriculum = Curriculum(segments, seed, first, numbers)
        self._indices = [corpus.index for corpus in self.corpora]
        self._renumbered = self._indices != list(range(len(names)))

    def locate(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Corpus index [n] and position [n] of samples [n]. Raises DataMismatch for data that are gone."""
        corpus, number = self.curriculum.assign(samples)
        position = np.empty_like(number)
        for i, one in enumerate(self.corpora):
            mine = corpus == i
            if mine.any():
                if one.index is None:
                    raise DataMismatch(
                        f"a sample from before the data changed is of shards of {one.name} that data.mix does not name "
                        f"any more ({one.samples} samples, manifest {one.manifest_sha256[:12]}): name them again"
                    )
                position[mine] = self.shuffle.positions(number[mine], one.key, one.samples, one.rows)
        if self._renumbered:
            corpus = np.array([-1 if index is None else index for index in self._indices])[corpus]
        return corpus, position

    def left_off(self, sample: int) -> dict[tuple[str, str], tuple[int, Shuffle]]:
        """Where each shard set is when `sample` comes next."""
        numbers = self.curriculum.counts(sample)
        return {(c.name, c.manifest_sha256): (n, self.shuffle) for c, n in zip(self.corpora, numbers, strict=True)}

    def _next_number(self, corpus: Corpus, left_off: dict[tuple[str, str], tuple[int, Shuffle]]) -> int:
        number, shuffle = left_off.get((corpus.name, corpus.manifest_sha256), (0, self.shuffle))
        # In another shuffle the rest of an epoch is other samples, some of them read before: begin the next one.
        return number if shuffle == self.shuffle else -(-number // corpus.samples) * corpus.samples


@dataclass
class Replay:
    """What exceptions make of a stream."""

    history: History = field(default_factory=History)
    eras: list[Era] = field(default_factory=list)
    damaged: list[set[int]] = field(default_factory=list)
    """Members that are not read, of each corpus of the stream."""


def replay(
    exceptions: Sequence[dict[str, Any]], fingerprint: dict[str, Any], seed: int, sets: Sequence[SampleSet]
) -> Replay:
    """Goes through the exceptions in the order in which they came to be."""
    described = [e["before"] for e in exceptions if e["kind"] == "change"] + [fingerprint]
    made = Replay(damaged=[set() for _ in sets])
    left_off: dict[tuple[str, str], tuple[int, Shuffle]] = {}
    made.eras.append(Era(described[0], seed, sets, 0, left_off))
    for exception in exceptions:
        if exception["kind"] == "skip":
            made.history.skip(exception["at"], exception["count"])
        elif exception["kind"] == "change":
            era, first = made.history.change(exception["at"])
            left_off |= made.eras[era].left_off(first)
            made.eras.append(Era(described[len(made.eras)], seed, sets, first, left_off))
        else:
            index = next((c.index for c in made.eras[-1].corpora if c.name == exception["corpus"]), None)
            if index is not None:
                made.damaged[index].add(exception["member"])
    return made


def describe(config: DataConfig, sets: Sequence[SampleSet], sequence_length: int) -> dict[str, Any]:
    """The part of a fingerprint that a recipe decides; sequence_length: tokens of a sample. Raises BadConfig."""
    weights = [source.weight for source in config.mix]
    names = [shard_set.name for shard_set in sets]
    curriculum = segments_of(config, names, sequence_length)
    if not all(np.isfinite(w) and w >= 0 for w in weights) or not any(weights):
        raise BadConfig(f"data.mix needs corpora with positive weights, not {weights}")
    for name, weight in zip(names, weights, strict=True):
        if not weight and not any(segment["weights"][name] for segment in curriculum):
            raise BadConfig(
                f"data.mix needs corpora with positive weights: {name} has none, neither there nor in data.curriculum"
            )
    if config.shuffle_window < 1:
        raise BadConfig(f"data.shuffle_window is {config.shuffle_window}; it must be at least 1")
    windowed = config.shuffle == "windowed" or (config.shuffle == "auto" and any(s.remote for s in sets))
    return {
        "mix": [
            {"name": s.name, "weight": w, "samples": s.samples, "manifest_sha256": s.manifest_sha256}
            for s, w in zip(sets, normalised(weights), strict=True)
        ],
        "curriculum": curriculum,
        "shuffle": Shuffle(config.shuffle_window if windowed else None).to_json(),
    }


def segments_of(config: DataConfig, names: Sequence[str], sequence_length: int) -> list[dict[str, Any]]:
    """data.curriculum as first samples and normalised weights of every corpus. Raises BadConfig."""
    segments: list[dict[str, Any]] = []
    for number, segment in enumerate(config.curriculum):
        key = f"data.curriculum.{number}"
        duration = Duration.parse(segment.from_)
        if duration.tokens is None and duration.steps != 0:
            raise BadConfig(f'{key}.from is "{segment.from_}": give it in tokens, such as "100B tokens"')
        first = -(-(duration.tokens or 0) // sequence_length)
        if segments and first <= segments[-1]["from"]:
            raise BadConfig(f"{key}.from is {segment.from_}, which is not after the segment before it")
        unknown = next((name for name in segment.weights if name not in names), None)
        if unknown is not None:
            raise BadConfig(f"{key}.weights names {unknown}, which is no corpus of data.mix ({', '.join(names)})")
        weights = [float(segment.weights.get(name, 0.0)) for name in names]
        if not all(np.isfinite(w) and w >= 0 for w in weights) or not any(weights):
            raise BadConfig(f"{key}.weights needs positive weights, not {segment.weights}")
        segments.append({"from": first, "weights": dict(zip(names, normalised(weights), strict=True))})
    return segments


def normalised(weights: Sequence[float]) -> list[float]:
    """Weights whose sum is one."""
    total = float(np.sum(weights))
    return [w / total for w in weights]


def _corpus(entry: dict[str, Any], seed: int, sets: Sequence[SampleSet]) -> Corpus:
    name, manifest = entry["name"], entry["manifest_sha256"]
    key = derive_key(seed, "corpus", name)
    for index, shard_set in enumerate(sets):
        if (shard_set.name, shard_set.manifest_sha256) == (name, manifest):
            return Corpus(name, manifest, shard_set.samples, key, shard_set.rows_per_member, index)
    return Corpus(name, manifest, entry["samples"], key)
