"""Where the time of one process goes: by phase within a step, and over its life."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

PHASES = ("data", "forward_backward", "optimizer", "checkpoint", "validation", "check")
USEFUL = ("forward_backward", "optimizer")


class StepClock:
    """Accumulates host seconds by phase; a phase inside another is taken out of the outer one.

    On a GPU the host runs ahead of the device: a phase's time is the device's only where the phase ends in a
    synchronisation, and the sum over a logging interval is right because that ends in one.

    `useful_seconds` is the time in forward, backward and optimizer over the run's whole life: it belongs in the
    checkpoint's state, so that the steps that a failure throws away do not count. `spent` says where all the time since
    `begun` (by the same clock; None: now) has gone.
    """

    def __init__(
        self, useful_seconds: float = 0.0, now: Callable[[], float] = time.monotonic, begun: float | None = None
    ) -> None:
        self.useful_seconds = useful_seconds
        self.around: Callable[[str], AbstractContextManager[object]] = nullcontext
        """Entered with each phase's name: a profiler's mark."""
        self._now = now
        self._life_began = now() if begun is None else begun
        self._first_step_began: float | None = None
        self._spent = dict.fromkeys(PHASES, 0.0)
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
        if self._first_step_began is None:
            self._first_step_began = self._mark
        self._stack.append(name)
        try:
            with self.around(name):
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
        `optimizer_seconds`, `checkpoint_seconds` and, where a step was checked, `check_seconds`. `validation_seconds`
        is the interval's sum, as it has its own rhythm.
        {} if no step was done: the time then counts into the next interval.
        """
        self._charge()
        if self._steps == 0:
            return {}
        validation = self._seconds["validation"]
        elapsed = self._mark - self._begun - validation
        figures = {"step_seconds": elapsed / self._steps}
        for name, seconds in self._seconds.items():
            if name == "check" and not seconds:
                continue
            figures[f"{name}_seconds"] = seconds if name == "validation" else seconds / self._steps
        self._begun = self._mark
        self._steps = 0
        self._seconds = dict.fromkeys(PHASES, 0.0)
        return figures

    def seconds_in(self, name: str) -> float:
        """Seconds of this process's life in a phase, so far as it has been left."""
        return self._spent[name]

    def spent(self) -> dict[str, float]:
        """Seconds of this process's life by what they went into; they add up to the time since `begun`.

        `start` (until the first step), `step` (forward, backward and optimizer, lost steps included), `data`,
        `checkpoint`, `validation`, `check`, `other`.
        """
        self._charge()
        began = self._mark if self._first_step_began is None else self._first_step_began
        spent = {"start": began - self._life_began, "step": sum(self._spent[name] for name in USEFUL)}
        spent |= {name: self._spent[name] for name in PHASES if name not in USEFUL}
        return spent | {"other": max(0.0, self._mark - self._life_began - sum(spent.values()))}

    def _charge(self) -> None:
        now = self._now()
        if self._stack:
            name = self._stack[-1]
            self._seconds[name] += now - self._mark
            self._spent[name] += now - self._mark
            if name in USEFUL:
                self.useful_seconds += now - self._mark
        self._mark = now
