"""On how many nodes to run: when to go on with fewer, and when to grow again. Pure: no Ray, no clock of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.config import ClusterConfig

LONGEST_PAUSE = 3600.0
"""Seconds; failed attempts to grow are not further apart."""


@dataclass(frozen=True)
class Sizes:
    """The numbers of nodes that the command can run on, largest first."""

    counts: tuple[int, ...]

    @classmethod
    def of(cls, config: ClusterConfig, others: Sequence[int]) -> Sizes:
        """`config.nodes`, and of the `others` those between `config.min_nodes` and it."""
        least = 1 if config.min_nodes is None else config.min_nodes
        fewer = {count for count in others if least <= count < config.nodes}
        return cls((config.nodes, *sorted(fewer, reverse=True)))

    def largest(self, available: int) -> int | None:
        """The largest number that so many nodes allow, None when they are too few."""
        return next((count for count in self.counts if count <= available), None)

    def choose(self, available: int, current: int, waited: float, patience: float) -> int | None:
        """How many of the available nodes to restart on; None: wait, or give up once `waited` is over `patience`.

        At once with at least as many nodes as before; with fewer when the wait for them (seconds) has been in vain.
        """
        best = self.largest(available)
        return best if best is not None and (best >= current or waited >= patience) else None


@dataclass
class Growth:
    """When to interrupt a run for the sake of more nodes. Times are of one monotonic clock, in seconds."""

    settle_seconds: float
    changed_at: float
    failures: int = 0
    """Attempts on more nodes, one after the other, that have failed before their first step."""

    def changed(self, now: float) -> None:
        """The number of nodes has changed, or the nodes that would make it grow."""
        self.changed_at = now

    def failed(self, now: float) -> None:
        """Growing did not work: the next try comes later, each time twice as late."""
        self.failures += 1
        self.changed_at = now

    def worked(self) -> None:
        """The larger attempt has made progress."""
        self.failures = 0

    def allowed(self, now: float) -> bool:
        """Whether the last change is long enough ago."""
        pause = self.settle_seconds * 2.0 ** min(self.failures, 30)
        return now - self.changed_at >= max(self.settle_seconds, min(pause, LONGEST_PAUSE))
