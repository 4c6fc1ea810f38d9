"""Weighted, shuffled, endless mixes: which sample of which shard set consumed sample b is, for whatever samples are.

consumed number --exceptions--> sample g --mix--> corpus, number in it --epoch, shuffle--> position

Each step is closed form, so that a resume is one integer and a rank reads only its slice. `stream.py` reads text so,
`pairs/stream.py` pictures with captions.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.batch import slice_of
from data_pipeline.config import DataConfig
from data_pipeline.eras import Replay, describe, replay
from data_pipeline.errors import DataMismatch
from data_pipeline.sample_set import SampleSet
from data_pipeline.shard_members import DamagedMember
from data_pipeline.stream_state import CHANGEABLE, STATE_VERSION, checked, difference, is_changeable, readable
from data_pipeline.substitution import substituted

S = TypeVar("S", bound=SampleSet)
T = TypeVar("T")


class MixedStream(ABC, Generic[S]):
    """The weighted, shuffled, endless mix of `config.mix`, whose shard sets `sets` are.

    Each corpus is shuffled anew every epoch. exceptions: as in `state()`, for a resume; `continuing` takes the whole
    state. sequence_length: tokens that a sample counts for. Raises BadConfig, BadShards or BadTokenizer for a mix that
    does not fit together; reading raises DamagedShard, and DataMismatch for samples of data that a change has taken
    away.
    """

    def __init__(
        self, config: DataConfig, seed: int, exceptions: Sequence[dict[str, Any]], sets: list[S], sequence_length: int
    ) -> None:
        self._sets = sets
        self._seed = seed
        self._substitutes = config.on_damaged == "substitute"
        self._described = {**describe(config, sets, sequence_length), **self._described_besides()}
        self.corpora = [shard_set.name for shard_set in sets]
        self.weights = {entry["name"]: entry["weight"] for entry in self._described["mix"]}
        self.samples = sum(shard_set.samples for shard_set in sets)
        """Samples in all corpora of the mix."""
        self.sequence_length = sequence_length
        self.vocab_size: int
        """Of the shards' tokenizer."""
        self.tokenizer_sha256 = sets[0].tokenizer_sha256
        self.remote = any(shard_set.remote for shard_set in sets)
        self.changed: str | None = None
        """What is other than in the state that `continuing` was given, in words."""
        self._lock = threading.Lock()
        self._found: list[dict[str, Any]] = []
        self._exceptions: list[dict[str, Any]] = []
        self._replay = Replay(damaged=[set() for _ in self._sets])
        self._take(exceptions)

    @classmethod
    def continuing(cls, config: DataConfig, seed: int, state: dict[str, Any], **given: int) -> Self:
        """The stream that continues the one which gave `state`; `given`: what else the stream is made with.

        Other data are taken over from there on if config.allow_change says so. Raises DataMismatch if it does not, or
        if they cannot be.
        """
        state = readable(state)
        stream = cls(config, seed, state["exceptions"], **given)  # type: ignore[arg-type]
        saved, own = state["fingerprint"], stream.fingerprint()
        stream.changed = difference(saved, own)
        if stream.changed and config.allow_change and is_changeable(saved, own):
            before = {key: saved[key] for key in CHANGEABLE if key in saved}
            stream._take([{"kind": "change", "at": state["samples"], "before": before}])
        stream.check_state(state)
        return stream

    @property
    @abstractmethod
    def tokenizer_path(self) -> Path:
        """The file of the shards' tokenizer. Raises BadTokenizer if it is not there."""

    @abstractmethod
    def batch(self, start: int, size: int, index: int = 0, count: int = 1) -> Any:
        """Slice `index` of `count` contiguous slices of consumed samples start ... start + size."""

    def locate(self, consumed: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For consumed sample numbers [n]: corpus index [n] and sample position in its shard set [n]."""
        corpus, position = self._locate(consumed)
        for number, damaged in enumerate(self._replay.damaged):
            if damaged:
                mine = corpus == number
                position[mine] = self._substituted(number, position[mine])
        return corpus, position

    def fetch_ahead(self, start: int, size: int, index: int = 0, count: int = 1) -> None:
        """Begins to fetch what `batch` will read of remote shard sets; returns at once."""
        corpus, position = self.locate(slice_of(start, size, index, count))
        for number, shard_set in enumerate(self._sets):
            if shard_set.remote:
                shard_set.fetch_ahead(position[corpus == number])

    def skip(self, at: int, count: int) -> None:
        """From consumed sample `at` on, sample numbers are shifted by `count` (a range of data is left out)."""
        self._take([{"kind": "skip", "at": at, "count": count}])

    def found_damage(self) -> list[dict[str, Any]]:
        """Substitutions that this rank has begun with since the last call, each with its `reason`."""
        with self._lock:
            found, self._found = self._found, []
        return found

    def substitute(self, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Takes over what any rank has found damaged, the same list on every rank; returns what is new."""
        known = {(e["corpus"], e["member"]) for e in self._exceptions_of_now() if e["kind"] == "substitute"}
        new = {(e["corpus"], e["member"]): e for e in found if (e["corpus"], e["member"]) not in known}
        ordered = [new[key] for key in sorted(new)]
        self._take([{"kind": "substitute", "corpus": e["corpus"], "member": e["member"]} for e in ordered])
        return ordered

    def epochs(self, samples: int) -> dict[str, float]:
        """Passes over each corpus after `samples` consumed samples; what was skipped does not count."""
        drawn = np.zeros(len(self._sets), dtype=np.int64)
        for number, first, end in self._replay.history.drawn(samples):
            era = self._replay.eras[number]
            counts = zip(era.corpora, era.curriculum.counts(first), era.curriculum.counts(end), strict=True)
            for corpus, before, after in counts:
                if corpus.index is not None:
                    drawn[corpus.index] += after - before
        return {s.name: int(n) / s.samples for s, n in zip(self._sets, drawn, strict=True)}

    def fingerprint(self) -> dict[str, Any]:
        """What the stream is a function of: data (hashes of manifests), seed, mix, curriculum, shuffle. JSON-able."""
        return {
            "seed": self._seed,
            "sequence_length": self.sequence_length,
            "tokenizer_sha256": self.tokenizer_sha256,
            **self._described,
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
        state = readable(state)
        given = [checked(e) for e in state["exceptions"]]
        # A stream that has gone on past a change was, when the state was written, what it was before that change.
        later = (e["before"] for e in self._exceptions[len(given) :] if e["kind"] == "change")
        then = self.fingerprint() | next(later, {})
        found = difference(state["fingerprint"], then)
        if found:
            way_out = "set it back"
            if is_changeable(state["fingerprint"], then):
                way_out += ", or go on with the new from here on with --data.allow-change"
            raise DataMismatch(f"the data are not those of the checkpoint: {found}; {way_out}")
        if self._exceptions[: len(given)] != given:
            raise DataMismatch("the stream was not given the exceptions (skipped ranges) of the checkpoint's state")

    def close(self) -> None:
        """Closes the files that are open."""
        for shard_set in self._sets:
            shard_set.close()

    def _take(self, exceptions: Sequence[dict[str, Any]]) -> None:
        taken = [*self._exceptions, *(checked(e) for e in exceptions)]
        made = replay(taken, self._described, self._seed, self._sets)
        with self._lock:  # a thread that reads ahead may be finding damage just now
            for known, now in zip(made.damaged, self._replay.damaged, strict=True):
                known |= now
            self._exceptions, self._replay = taken, made

    def _locate(self, consumed: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where samples are when nothing is damaged."""
        made = self._replay  # one and the same, whatever another thread takes over meanwhile
        era, samples = made.history.resolve(consumed)
        eras = np.unique(era).tolist() if len(made.eras) > 1 else [0]
        if len(eras) == 1:
            return made.eras[eras[0]].locate(samples)
        corpus, position = np.empty_like(samples), np.empty_like(samples)
        for number in eras:
            mine = era == number
            corpus[mine], position[mine] = made.eras[number].locate(samples[mine])
        return corpus, position

    def _described_besides(self) -> dict[str, Any]:
        """What of a kind's own a change may replace, for the fingerprint."""
        return {}

    def _read(self, number: int, positions: NDArray[np.int64], read: Callable[[NDArray[np.int64]], T]) -> T:
        """What `read` gives of a corpus's positions, or of those that are read in the place of damaged ones."""
        shard_set = self._sets[number]
        while True:
            try:
                return read(self._substituted(number, positions))
            except DamagedMember as damage:
                if not self._substitutes:
                    raise
                with self._lock:
                    self._replay.damaged[number].add(damage.member)
                    entry = {"corpus": shard_set.name, "member": damage.member, "reason": str(damage)}
                    self._found.append(entry)

    def _substituted(self, number: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        damaged, shard_set = self._replay.damaged[number], self._sets[number]
        if not damaged:
            return positions
        return substituted(positions, damaged, shard_set.name, shard_set.samples, shard_set.samples_per_damage)

    def _exceptions_of_now(self) -> list[dict[str, Any]]:
        """Those since the last change, which speak of the shard sets that are read now."""
        last = max((i for i, e in enumerate(self._exceptions) if e["kind"] == "change"), default=-1)
        return self._exceptions[last + 1 :]

    def _shifted(self, consumed: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sample numbers that consumed samples are."""
        return self._replay.history.resolve(consumed)[1]
