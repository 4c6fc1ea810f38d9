"""When the ranks of an attempt are to save and leave before they have finished, and whether the run then goes on."""

from __future__ import annotations

from enum import Enum

from cluster.attempt import Attempt
from cluster.config import ClusterConfig
from cluster.head import Head
from cluster.policy import Verdict
from cluster.resizing import Roster
from cluster.signals import StopRequests

HEADLESS_SECONDS = 20.0
"""How long to go on without a head, which may be starting again. Ray's nodes end after 60 s; the rest is for saving."""


class Leave(Enum):
    """Whose wish it is."""

    STOP = "the run was asked to stop"
    GROW = "more nodes can be used"
    DRAIN = "Ray is to take the node away"
    OWN = "a rank there got SIGTERM"
    HEAD = "Ray's head is gone"


class Leaving:
    """Decides it for one attempt after the other; `why` is None while the ranks are to stay."""

    def __init__(self, config: ClusterConfig, roster: Roster, head: Head, stop: StopRequests) -> None:
        self.why: Leave | None = None
        self.going: set[str] = set()
        """Addresses of the nodes that go away."""
        self._config = config
        self._roster = roster
        self._head = head
        self._stop = stop

    def reset(self) -> None:
        """An attempt begins."""
        self.why, self.going = None, set()

    def look(self, attempt: Attempt, verdict: Verdict) -> bool:
        """Whether the ranks are to leave, or have begun to. Called until it is so. May raise `AgentLost`."""
        self._roster.pool.draining = self._head.draining
        self.why = self._reason(attempt, verdict)
        return self.why is not None

    @property
    def headless(self) -> bool:
        """Whether Ray's head has been unreachable for too long: soon after, Ray ends its nodes."""
        return self._head.silent_seconds > min(self._config.agent_seconds, HEADLESS_SECONDS)

    @property
    def goes_on(self) -> bool:
        """Whether ranks that have saved and left are to be started again, without the nodes that go away.

        Ranks that were asked to stop on every node: that is meant for the run, and so is what nobody can tell of. When
        all nodes are drained, it depends on whether there is another.
        """
        all_go = self.going >= {place.address for place in self._roster.used}
        if self.why is Leave.OWN:
            return bool(self.going) and not all_go
        if self.why is Leave.DRAIN:
            return not all_go or self._roster.pool.has_spare(self._roster.used)
        return self.why is Leave.GROW

    def _reason(self, attempt: Attempt, verdict: Verdict) -> Leave | None:
        if self._stop.received is not None:
            return Leave.STOP
        if verdict in (Verdict.LEAVING, Verdict.PREEMPTED):
            attempt.refresh()  # ranks tell that they were asked to stop before they leave
            self.going = attempt.nodes_asked_to_stop
            return Leave.OWN
        if self.headless:
            return Leave.HEAD
        if not attempt.all_in_step:  # SIGTERM would kill a rank that is still starting
            return None
        self.going = {place.address for place in self._roster.used if place.node_id in self._head.draining}
        if self.going:
            return Leave.DRAIN
        return Leave.GROW if self._roster.larger() is not None else None
