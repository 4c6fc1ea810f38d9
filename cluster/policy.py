"""The failure policy: what an attempt's exit codes mean, and whether to start again. Pure: no Ray, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass
class RestartPolicy:
    """Start again after a failure, up to `max_restarts` times in a row without progress.

    Progress is a higher step than any attempt has reached before; it pays the used restarts back, so that a run of
    months survives any number of failures that are far enough apart.
    """

    max_restarts: int
    best_step: int = -1
    used: int = 0

    def restart_after(self, step: int | None) -> bool:
        """Count a failure at highest step `step` (None: before the first step); True: start again, False: give up."""
        if step is not None and step > self.best_step:
            self.best_step = step
            self.used = 0
        if self.used >= self.max_restarts:
            return False
        self.used += 1
        return True
