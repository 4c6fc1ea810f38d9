"""Where the time goes: by phase within a step, and useful or lost over a run's life."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

PHASES = ("data", "forward_backward", "optimizer", "checkpoint", "validation")
USEFUL = ("forward_backward", "optimizer")


class StepClock:
    """Accumulates host seconds by phase; a phase inside another is taken out of the outer one.

    On a GPU the host runs ahead of the device: a phase's time is the device's only where the phase ends in a
    synchronisation, and the sum over a logging interval is right because that ends in one.

    `useful_seconds` is the time in forward, backward and optimizer over the run's whole life: it belongs in the
    checkpoint's state, so that the steps that a failure throws away do not count.
    """

    def __init__(self, useful_seconds: float = 0.0, now: Callable[[], float] = time.perf_counter) -> None:
        self.useful_seconds = useful_seconds
        self._now = now
        self._stack: list[str] = []
        self._mark = now()
        self._begun = self._mark
        self._steps = 0
        self._seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is inside. Raises KeyError for a phase that does not exist."""
        if name not in self._seconds:
            raise KeyError(f"no phase {name!r}: there are {', '.join(PHASES)}")
        self._charge()
        self._stack.append(name)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def step_done(self) -> None:
        """Count a step of the current interval."""
        self._steps += 1

    def take(self) -> dict[str, float]:
        """The figures of the interval since the last call, which begins anew.

        Seconds per step: `step_seconds` (everything but validation), `data_seconds`, `forward_backward_seconds`,
        `optimizer_seconds`, `checkpoint_seconds`. `validation_seconds` is the interval's sum, as it has its own rhythm.
        {} if no step was done: the time then counts into the next interval.
        """
        self._charge()
        if self._steps == 0:
            return {}
        validation = self._seconds["validation"]
        elapsed = self._mark - self._begun - validation
        figures = {"step_seconds": elapsed / self._steps}
        for name, seconds in self._seconds.items():
            figures[f"{name}_seconds"] = seconds if name == "validation" else seconds / self._steps
        self._begun = self._mark
        self._steps = 0
        self._seconds = dict.fromkeys(PHASES, 0.0)
        return figures

    def _charge(self) -> None:
        now = self._now()
        if self._stack:
            name = self._stack[-1]
            self._seconds[name] += now - self._mark
            if name in USEFUL:
                self.useful_seconds += now - self._mark
        self._mark = now


def wall_seconds(events: Sequence[Mapping[str, Any]], now: datetime) -> float:
    """Seconds for which the run was up or coming up again, over all its launches.

    A launch lasts from its `started` event to the last event before the next `started`, the current one until `now`:
    restarts after a failure count, a week between two launches does not.
    """
    times = [(event["event"], datetime.fromisoformat(event["time"])) for event in events]
    starts = [index for index, (name, _) in enumerate(times) if name == "started"]
    total = 0.0
    for launch, start in enumerate(starts):
        end = now if launch + 1 == len(starts) else times[starts[launch + 1] - 1][1]
        total += (end - times[start][1]).total_seconds()
    return total


def goodput(useful_seconds: float, events: Sequence[Mapping[str, Any]], now: datetime) -> float | None:
    """The share of the run's wall time that went into steps which were kept; None before anything has started."""
    total = wall_seconds(events, now)
    return useful_seconds / total if total > 0 else None
