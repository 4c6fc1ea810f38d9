"""What a stream's state says: exceptions, in the order in which they came to be, and the fingerprint of its data.

    {"kind": "skip", "at", "count"}            from consumed sample `at` on, `count` samples are left out
    {"kind": "substitute", "corpus", "member"}  a damaged member, in whose place others of its corpus are read
    {"kind": "change", "at", "before"}         from `at` on, another mix; `before` is what was read until then: mix,
                                               curriculum and shuffle, as in the fingerprint (and the augmentation,
                                               of pairs)

Each speaks of the stream as it was under those before it. Format 1 knew skips alone, no curriculum and one shuffle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataMismatch

STATE_VERSION = 2
CHANGEABLE = ("mix", "curriculum", "shuffle", "augmentation")
"""Parts of the fingerprint that a change may replace; the others never change within a run."""

_FULL = {"mode": "full"}


def readable(state: dict[str, Any]) -> dict[str, Any]:
    """A state of any known format in that of today. Raises DataMismatch for a later one."""
    version = state.get("format_version")
    if version not in (1, STATE_VERSION):
        raise DataMismatch(f"the data state has format {version}, this version reads up to {STATE_VERSION}")
    fingerprint = {"curriculum": [], "shuffle": _FULL} | state["fingerprint"]
    return {**state, "format_version": STATE_VERSION, "fingerprint": fingerprint}


def checked(exception: dict[str, Any]) -> dict[str, Any]:
    """A copy of a known exception. Raises DataMismatch for any other."""
    wanted: dict[str, dict[str, type]] = {
        "skip": {"at": int, "count": int},
        "substitute": {"corpus": str, "member": int},
        "change": {"at": int, "before": dict},
    }
    kind = exception.get("kind")
    fields = wanted.get(str(kind), {})
    values = {name: exception.get(name) for name in fields}
    whole = all(isinstance(values[name], cls) for name, cls in fields.items())
    if not fields or not whole or any(isinstance(v, int) and v < 0 for v in values.values()):
        raise DataMismatch(f"unknown exception in the data state: {exception}")
    return {"kind": kind, **values}


def difference(saved: dict[str, Any], own: dict[str, Any]) -> str | None:
    """What differs between two fingerprints, in words; None if nothing does."""
    for key in ("seed", "sequence_length", "image_size", "tokenizer_sha256"):
        if saved.get(key) != own.get(key):
            return f"{key} was {saved.get(key)} and is {own.get(key)}"
    before, now = ({m["name"]: m for m in fingerprint["mix"]} for fingerprint in (saved, own))
    if list(before) != list(now):
        return f"the mix was {', '.join(before)} and is {', '.join(now)}"
    for name, entry in before.items():
        if entry["weight"] != now[name]["weight"]:
            return f"the weight of {name} was {entry['weight']:.6g} and is {now[name]['weight']:.6g} (normalised)"
        if entry["manifest_sha256"] != now[name]["manifest_sha256"]:
            return f"the shards of {name} are others ({entry['samples']} samples then, {now[name]['samples']} now)"
    if saved["curriculum"] != own["curriculum"]:
        return f"the curriculum was {_segments(saved)} and is {_segments(own)}"
    if saved["shuffle"] != own["shuffle"]:
        return f"the shuffle was {_shuffle(saved)} and is {_shuffle(own)} (keep it: set {_setting(saved)})"
    was, is_ = saved.get("augmentation", {}), own.get("augmentation", {})
    for key in sorted(was | is_):
        if was.get(key) != is_.get(key):
            return f"data.images.{key} was {was.get(key)} and is {is_.get(key)}"
    return None


def is_changeable(saved: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether all that differs may change within a run."""
    return all(saved[key] == own[key] for key in saved if key not in CHANGEABLE)


def _segments(fingerprint: dict[str, Any]) -> str:
    told = [
        f"from sample {segment['from']} on " + ", ".join(f"{n} {w:.6g}" for n, w in segment["weights"].items())
        for segment in fingerprint["curriculum"]
    ]
    return "; ".join(told) or "none"


def _shuffle(fingerprint: dict[str, Any]) -> str:
    shuffle = fingerprint["shuffle"]
    return shuffle["mode"] + (f" (window {shuffle['window']})" if "window" in shuffle else "")


def _setting(fingerprint: dict[str, Any]) -> str:
    shuffle = fingerprint["shuffle"]
    window = f" and data.shuffle_window: {shuffle['window']}" if "window" in shuffle else ""
    return f"data.shuffle: {shuffle['mode']}{window}"


@dataclass(frozen=True)
class _Skip:
    at: int
    count: int


@dataclass(frozen=True)
class _Change:
    at: int
    era: int
    first: int
    """Sample number that consumed sample `at` is in its era."""


class History:
    """From consumed samples to (era, sample): the skips and changes so far. An era is the time of one mix."""

    def __init__(self) -> None:
        self._steps: list[_Skip | _Change] = []
        self.eras = 1

    def skip(self, at: int, count: int) -> None:
        """From consumed sample `at` on, `count` samples are left out."""
        self._steps.append(_Skip(at, count))

    def change(self, at: int) -> tuple[int, int]:
        """From consumed sample `at` on there is a new era, whose samples are counted on.

        Returns the era in which `at` lay, and its sample number there, at which the new era begins.
        """
        (era,), (first,) = (found.tolist() for found in self.resolve(np.array([at])))
        self._steps.append(_Change(at, self.eras, first))
        self.eras += 1
        return era, first

    def resolve(self, consumed: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The era [n] and the sample number in it [n] of consumed samples [n]."""
        # The newest first: it speaks of numbers as they were under those before it. A run that goes back past an
        # exception leaves out what it has drawn since, which that exception had shifted.
        era = np.zeros(len(consumed), dtype=np.int64)
        samples = consumed
        for step in reversed(self._steps):
            concerned = (samples >= step.at) & (era == 0)
            if isinstance(step, _Skip):
                samples = samples + np.where(concerned, step.count, 0)
            else:  # what was before the change does not concern these
                samples = samples + np.where(concerned, step.first - step.at, 0)
                era = np.where(concerned, step.era, era)
        return era, samples

    def drawn(self, samples: int) -> list[tuple[int, int, int]]:
        """The ranges (era, first sample, end) that consumed samples 0 ... `samples` are."""
        found: list[tuple[int, int, int]] = []
        ranges = [(0, samples)]
        for step in reversed(self._steps):
            before = [(first, min(end, step.at)) for first, end in ranges]
            after = [(max(first, step.at), end) for first, end in ranges]
            if isinstance(step, _Skip):
                ranges = _not_empty([*before, *((first + step.count, end + step.count) for first, end in after)])
            else:
                shift = step.first - step.at
                found += [(step.era, first + shift, end + shift) for first, end in _not_empty(after)]
                ranges = _not_empty(before)
        return found + [(0, first, end) for first, end in ranges]


def _not_empty(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(first, end) for first, end in ranges if first < end]
