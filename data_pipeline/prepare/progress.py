"""Says how far a phase is: share, rate, time left; a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_EVERY_SECONDS = 5.0


class Progress:
    """say: called with each line. Keeps the wall time of every phase in `seconds`."""

    def __init__(self, say: Callable[[str], None], every_seconds: float = _EVERY_SECONDS) -> None:
        self.say, self._every = say, every_seconds
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str, total: float, done: float = 0.0) -> Iterator[Callable[[float], None]]:
        """Yields the function to call with what has been done; `total` in bytes, `done` of them by an earlier run."""
        begun = said = time.monotonic()
        fresh = 0.0

        def advance(amount: float) -> None:
            nonlocal fresh, said
            fresh += amount
            now = time.monotonic()
            if now - said >= self._every and done + fresh < total:
                said = now
                rate = fresh / (now - begun)
                left = (total - done - fresh) / rate if rate else 0.0
                self.say(f"{name}: {(done + fresh) / total:.0%}, {_rate(rate)}, {_duration(left)} left")

        if done:
            self.say(f"{name}: {done / total:.0%} was done before")
        yield advance
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begun


def _rate(per_second: float) -> str:
    return f"{per_second / 1e6:.1f} MB/s" if per_second > 1e4 else f"{per_second:.1f}/s"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
