"""A clock for deadlines of others, which must not pass because this process was not running."""

from __future__ import annotations

import time
from collections.abc import Callable


class AwakeClock:
    """Seconds in which this process looked at it: of a longer time between two looks only `longest` seconds count.

    Whoever was stopped (Ctrl-Z, a paused machine, swapping) has not waited for others meanwhile. `now`: seconds.
    """

    def __init__(self, longest: float, now: Callable[[], float] = time.monotonic) -> None:
        self._longest = longest
        self._now = now
        self._looked_at = now()
        self._seconds = 0.0

    def look(self) -> float:
        """The time by this clock."""
        now = self._now()
        self._seconds += min(now - self._looked_at, self._longest)
        self._looked_at = now
        return self._seconds
