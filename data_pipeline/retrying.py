"""Tries again what may have failed for the moment only: exponential back-off with jitter, bounded in all."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from data_pipeline.errors import BadConfig, BadShards, DamagedShard

T = TypeVar("T")
_log = logging.getLogger("trestle.data")

FINAL = (FileNotFoundError, IsADirectoryError, PermissionError, BadShards, BadConfig, DamagedShard)
"""What another attempt does not mend. A store that is only overloaded says so in other ways."""


class Corrupt(Exception):
    """Bytes that came, but are not those that were written."""


@dataclass(frozen=True)
class Patience:
    """How often to try, and for how long."""

    attempts: int
    first_pause: float
    """Seconds, doubled each time, times 0.5 ... 1.5 at random: a thousand ranks must not come at once."""
    total: float
    """Seconds after which no further attempt begins."""

    def attempt(self, what: str, work: Callable[[], T]) -> T:
        """The result of `work`. Raises what is final as it is; after the last attempt DamagedShard, naming `what`."""
        begun = time.monotonic()
        pause = self.first_pause
        for number in range(1, self.attempts + 1):
            try:
                return work()
            except FINAL:
                raise
            except Exception as error:  # each store has its own; the last one is told
                waited = pause * random.uniform(0.5, 1.5)
                spent = time.monotonic() - begun
                if number == self.attempts or spent + waited > self.total:
                    tries = f"{number} attempts in {spent:.0f} s" if number > 1 else "1 attempt"
                    raise DamagedShard(f"{what} cannot be read: {reason(error)} ({tries})") from error
                _log.info("%s: %s; trying again in %.1f s", what, reason(error), waited)
                time.sleep(waited)  # the pause is the point: the store is to recover, and nothing tells when it has
                pause *= 2
        raise AssertionError("unreachable")


REMOTE = Patience(attempts=5, first_pause=0.5, total=90.0)
LOCAL = Patience(attempts=3, first_pause=0.05, total=1.0)


def reason(error: BaseException) -> str:
    """What an exception says, on one line."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return str(text)
