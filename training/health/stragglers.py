"""Which ranks are slower than their peers, for long enough to be told. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

LEAST_OBSERVATIONS = 3
"""A single slow interval may be a neighbour's doing, however long it was."""


@dataclass(frozen=True)
class Change:
    """A rank has become a straggler, or is none any more."""

    rank: int
    slow: bool
    factor: float
    """How many times as long as the median of its peers it took, on average over `seconds`."""
    seconds: float
    """For how long."""


class StragglerDetector:
    """Compares ranks of the same kind: those whose `kinds` are equal do the same work.

    A rank is a straggler when it has taken at least `factor` times the median of its peers (itself left out: of two,
    the other) in every one of the intervals of the last `seconds`, and recovers when it has not for as long.
    """

    def __init__(self, kinds: Sequence[Hashable], factor: float, seconds: float) -> None:
        of_kind: dict[Hashable, list[int]] = defaultdict(list)
        for rank, kind in enumerate(kinds):
            of_kind[kind].append(rank)
        self._groups = list(of_kind.values())
        self._factor = factor
        self._seconds = seconds
        self._slow = [False] * len(kinds)
        # Of intervals in a row that speak against the present verdict: how many, their seconds, factors x seconds.
        self._runs = [(0, 0.0, 0.0)] * len(kinds)

    def observe(self, values: Sequence[float], seconds: float) -> list[Change]:
        """Take note of an interval of `seconds`, in which a step took each rank `values` (seconds); what changed."""
        found = []
        for rank, factor in enumerate(self.factors(values)):
            if factor is None or (factor >= self._factor) == self._slow[rank]:
                self._runs[rank] = (0, 0.0, 0.0)
                continue
            count, length, weighted = self._runs[rank]
            count, length, weighted = count + 1, length + seconds, weighted + factor * seconds
            self._runs[rank] = (count, length, weighted)
            if count >= LEAST_OBSERVATIONS and length >= self._seconds:
                self._slow[rank] = not self._slow[rank]
                self._runs[rank] = (0, 0.0, 0.0)
                found.append(Change(rank, self._slow[rank], weighted / length if length else factor, length))
        return found

    def factors(self, values: Sequence[float]) -> list[float | None]:
        """Each rank's time over the median of its peers'; None without peers, or where they did nothing."""
        found: list[float | None] = [None] * len(values)
        for ranks in self._groups:
            by_time = sorted(ranks, key=values.__getitem__)
            times = [values[rank] for rank in by_time]
            for place, rank in enumerate(by_time):
                middle = _median_without(times, place)
                found[rank] = values[rank] / middle if middle > 0 else None
        return found


def _median_without(ordered: Sequence[float], place: int) -> float:
    """The median of all but the one at `place`; 0 if there are no others. One sorting serves thousands of ranks."""
    count = len(ordered) - 1
    if count == 0:
        return 0.0
    low, high = ((count - 1) // 2, count // 2)
    return (ordered[low + (low >= place)] + ordered[high + (high >= place)]) / 2
