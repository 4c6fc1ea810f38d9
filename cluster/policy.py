"""The failure policy: what an attempt's exit codes mean, and what to do next. Pure: no Ray, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

EXIT_FINISHED = 0
EXIT_ENVIRONMENT = 1
EXIT_USER_ERROR = 2
EXIT_RESUME_ME = 75  # EX_TEMPFAIL of sysexits.h: saved, try again


class Verdict(Enum):
    """What the ranks' exit codes say about the attempt."""

    RUNNING = "running"
    FINISHED = "finished"
    LEAVING = "leaving"  # some saved and left, others are still at it
    PREEMPTED = "preempted"
    USER_ERROR = "user error"
    FAILED = "failed"


def judge(exit_codes: Sequence[int | None]) -> Verdict:
    """Judge an attempt by its ranks' exit codes (None: still running; negative: killed by that signal).

    One rank that refuses its input (2) outweighs what its peers say, since they fail for its sake; a failure outweighs
    the rest, since the others then wait for a peer that is gone.
    """
    codes = set(exit_codes)
    if EXIT_USER_ERROR in codes:
        return Verdict.USER_ERROR
    if codes - {None, EXIT_FINISHED, EXIT_RESUME_ME}:
        return Verdict.FAILED
    if EXIT_RESUME_ME in codes:
        return Verdict.LEAVING if None in codes else Verdict.PREEMPTED
    return Verdict.RUNNING if None in codes else Verdict.FINISHED


class Kind(Enum):
    """What failed."""

    EXIT = "a rank ended"
    HANG = "a rank hung"
    USER_ERROR = "a rank refused its input"
    LOST = "a node or its agent was lost"


class Action(Enum):
    """What to do about it."""

    RESTART = "restart"
    RESTART_ELSEWHERE = "restart elsewhere"
    SHRINK = "restart on fewer nodes"
    GIVE_UP = "give up"


@dataclass(frozen=True)
class Decision:
    """The action, and the node to keep away from where it says so."""

    action: Action
    avoid: str | None = None


@dataclass
class FailurePolicy:
    """What to do after a failure: what failed, how often, on which node, and with what progress in between.

    - A refused input is not tried again, unless an earlier attempt has got on with it and this one has not: then
      something is missing on the node that refuses (a mount, the shards), which has failed like any other.
    - An attempt on more nodes than the one before that fails before its first step goes back to the former number;
      the nodes that came are to blame, so that it costs none of the restarts.
    - Else start again, up to `max_restarts` times in a row without progress. Progress is a higher step than any attempt
      has reached before; it pays the used restarts back, so that a run of months survives any number of failures that
      are far enough apart.
    - A node is suspected when `SUSPICIOUS` failures in a row or more, without progress, were all on it. It is avoided
      as soon as a spare one exists, and left out, where fewer nodes work, before giving up for its sake.

    Every chain of decisions without progress ends: restarts are counted, a node is avoided once, and there are only so
    many nodes to go without.
    """

    SUSPICIOUS = 2

    max_restarts: int
    best_step: int = -1
    used: int = 0
    on_node: Counter[str] = field(default_factory=Counter)
    """Failures since the last progress, by node."""

    def reached(self, step: int | None) -> bool:
        """Note the highest step of an attempt (None: before its first); whether that is progress."""
        if step is None or step <= self.best_step:
            return False
        self.best_step = step
        self.used = 0
        self.on_node.clear()
        return True

    def decide(
        self, kind: Kind, node: str, step: int | None, *, spare: bool, smaller: bool, grown: bool = False
    ) -> Decision:
        """Count a failure on `node` at highest step `step`.

        `spare`: another node could take this one's place; `smaller`: the run can go on without this node and with no
        other; `grown`: the attempt was the first on more nodes than before.
        """
        self.reached(step)
        if kind is Kind.USER_ERROR and (step is not None or self.best_step < 0):
            return Decision(Action.GIVE_UP)
        if grown and step is None:
            return Decision(Action.SHRINK)
        self.on_node[node] += 1
        # A lost node is gone, and what comes back under its name is a new one.
        suspected = kind is not Kind.LOST and len(self.on_node) == 1 and self.on_node[node] >= self.SUSPICIOUS
        if self.used >= self.max_restarts:
            if not (suspected and smaller):
                return Decision(Action.GIVE_UP)
            self.used = 0
            self.on_node.clear()
            return Decision(Action.SHRINK, avoid=node)
        self.used += 1
        if suspected and spare:
            return Decision(Action.RESTART_ELSEWHERE, avoid=node)
        return Decision(Action.RESTART)
