"""Which nodes carry the next attempt: waits for lost ones, goes on with fewer, and says when more could be used."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cluster.config import ClusterConfig
from cluster.placement import POLL_SECONDS, Place, describe, in_order, living_nodes
from cluster.policy import Action, Decision
from cluster.pool import Pool
from cluster.sizes import Growth, Sizes

LOOK_SECONDS = 1.0
"""How often a running attempt looks for nodes that have come."""
ELSEWHERE_SECONDS = 10.0
"""How long to wait for a node in the place of a suspected one, which is there and could be used."""


class NodesGone(Exception):
    """Nodes were lost and have not come back in time."""


class Roster:
    """The nodes of one attempt after the other. `check` is called while waiting; what it raises ends the wait."""

    def __init__(
        self, config: ClusterConfig, node_counts: Sequence[int], scratch: str | None, check: Callable[[], None]
    ) -> None:
        self.sizes = Sizes.of(config, node_counts)
        self.pool = Pool(config, scratch, check)
        self.used: list[Place] = []
        self.former = 0
        """On how many nodes the attempt before this one ran; 0: there was none."""
        self._config = config
        self._check = check
        self._growth = Growth(config.grow_seconds, time.monotonic())
        self._expected = 0  # as many are waited for
        self._cap: int | None = None  # until growing is allowed again
        self._looked_at = time.monotonic()

    @property
    def grown(self) -> bool:
        """Whether the newest attempt has more nodes than the one before."""
        return 0 < self.former < len(self.used)

    def choose(self) -> list[Place]:
        """The nodes of the next attempt, as 0, 1, ...

        Raises at first as `placement.reserve`, later `NodesGone`.
        """
        first = not self.used
        if first:
            self.pool.open(self.sizes)
            chosen = self.pool.places
        else:
            self.pool.verify()
            chosen = self._wait()
        self.former, self.used, self._expected = len(self.used), chosen, len(chosen)
        if len(chosen) != self.former:
            self._growth.changed(time.monotonic())
        return chosen

    def lose(self, place: Place) -> None:
        """A node, or the agent on it, is gone."""
        self.pool.lose(place)

    def failed(self, decision: Decision) -> None:
        """Act on what the policy says about the newest attempt."""
        if decision.avoid is not None:
            self.pool.avoid(decision.avoid)
        if decision.action is Action.SHRINK:
            self._cap = self.former if decision.avoid is None else self._without(decision.avoid)
            self._expected = self._cap
            self._growth.failed(time.monotonic())

    def smaller(self, node: str) -> bool:
        """Whether the run could go on without this node, and with no other."""
        return bool(self._without(node))

    def progressed(self) -> None:
        """The newest attempt has got further than any before."""
        self._growth.worked()

    def larger(self) -> int | None:
        """On how many nodes more than now the run could go on, now that it is worth an interruption; None: on none.

        Looks once in `LOOK_SECONDS`, and never waits.
        """
        now = time.monotonic()
        if now - self._looked_at < LOOK_SECONDS or len(self.used) == self.sizes.counts[0]:
            return None
        self._looked_at = now
        if self.pool.look():
            self._growth.changed(now)
        best = self.sizes.largest(len(self.pool.places))
        if not (self._config.grow and best is not None and best > len(self.used) and self._growth.allowed(now)):
            return None
        self.pool.verify()  # a spare node may be gone by now: no reason for an interruption
        best = self.sizes.largest(len(self.pool.places))
        return best if best is not None and best > len(self.used) else None

    def _wait(self) -> list[Place]:
        since = time.monotonic()
        while True:
            self._check()
            self.pool.look()
            now = time.monotonic()
            ours, suspects = self.pool.places, self.pool.suspects
            capped = self._cap is not None and not self._growth.allowed(now)
            available = min(len(ours), self._cap or 0) if capped else len(ours)
            fallback = self.sizes.largest(len(ours) + len(suspects))
            patience = self._config.node_return_seconds
            if suspects and fallback is not None and fallback >= self._expected:
                patience = min(patience, ELSEWHERE_SECONDS)
            count = self.sizes.choose(available, self._expected, now - since, patience)
            if count is None and now - since >= patience:
                count = fallback
                if count is None:
                    there = describe(living_nodes())
                    raise NodesGone(f"too few nodes to restart on after {patience:g} s; the cluster has {there}")
            if count is not None:
                return in_order([*ours, *suspects][:count])
            time.sleep(POLL_SECONDS)  # Ray tells of nodes only when asked

    def _without(self, node: str) -> int:
        return self.sizes.largest(sum(place.address != node for place in self.pool.places)) or 0
