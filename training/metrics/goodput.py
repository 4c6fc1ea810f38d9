"""Goodput: which share of a run's wall time went into steps that were kept, over all attempts, and where the rest went.

Rank 0 reports for each attempt how long it has spent on what (`AttemptTimes`, kept by `ledger`); whoever supervises the
ranks writes when they were started and when they had ended (events.jsonl). Durations are measured by monotonic clocks
wherever there is one, so that a time of day that jumps moves at most a share from one cause to another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

CAUSES = {
    "start": "start",
    "lost": "lost work",
    "checkpoint": "checkpoints",
    "data": "data wait",
    "validation": "validation",
    "check": "checks",
    "stopped": "failures and hangs",
    "other": "other",
}
"""What keeps a run from useful steps, and its name for eyes.

`start`: starting Ray and ranks, imports, loading, until an attempt's first step. `lost`: steps that no checkpoint had
when a failure or a loss spike threw them away. `stopped`: from the last step of an attempt that failed until ranks were
started again: a hang until it was found, clearing away, waiting for nodes.
"""

Event = Mapping[str, Any]


@dataclass
class AttemptTimes:
    """What rank 0 knew of one attempt when it last reported."""

    launch: int
    """How many `started` events there were, which are one for each `trestle train` or `resume`; 0 under torchrun."""
    attempt: int
    begun: str
    """When the process began its work (ISO 8601, UTC)."""
    from_step: int
    """Steps of the run when the attempt began."""
    step: int
    """Steps of the run at the report."""
    seconds: dict[str, float] = field(default_factory=dict)
    """As of `StepClock.spent`."""

    @property
    def total(self) -> float:
        """Seconds from the beginning of the process to the report."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Account:
    """Seconds of wall time: `useful`, and the rest by cause."""

    useful: float
    rest: dict[str, float]

    @property
    def wall(self) -> float:
        return self.useful + sum(self.rest.values())

    def shares(self) -> dict[str, float]:
        """`goodput` and `goodput/<cause>`, which add up to 1; {} before any time has passed."""
        wall = self.wall
        if wall <= 0:
            return {}
        return {"goodput": self.useful / wall} | {
            f"goodput/{name}": seconds / wall for name, seconds in self.rest.items()
        }


@dataclass
class _Period:
    """From the start of ranks to the end of the last of them, as a supervisor saw it."""

    launch: int
    opened: Event
    closed: Event | None = None
    before: float = 0.0
    """Seconds of the launch before its first ranks were started."""


def account(events: Sequence[Event], attempts: Sequence[AttemptTimes], useful_seconds: float) -> Account:
    """Where the time of a run went, so far. `useful_seconds` are those of the steps that the run has kept.

    Counted are launches (from their start to their end), not the time between them.
    """
    rest = dict.fromkeys(CAUSES, 0.0)
    periods, rest["stopped"] = _periods(events)
    unmatched = list(attempts)
    step_seconds = unreported = 0.0
    for period in periods:
        times = next((t for t in unmatched if (t.launch, t.attempt) == _key(period)), None)
        rest["start"] += period.before
        if times is None:  # never got to its first report
            unreported += _between(period.opened, period.closed)
            continue
        unmatched.remove(times)
        _add_around(rest, period, times)
    for times in attempts:
        step_seconds += times.seconds.get("step", 0.0)
        for name, seconds in times.seconds.items():
            if name != "step":
                rest[name if name in rest else "other"] += seconds
    useful = max(0.0, min(useful_seconds, step_seconds + unreported))
    rest["lost"] += max(0.0, step_seconds - useful)
    # A run from before there were reports may have kept more than any attempt has told.
    rest["start"] += unreported - max(0.0, useful - step_seconds)
    return Account(useful, rest)


def _add_around(rest: dict[str, float], period: _Period, times: AttemptTimes) -> None:
    """Divide what the supervisor saw of an attempt and the attempt itself could not tell."""
    before = max(0.0, _by_time_of_day(period.opened["time"], times.begun))
    if period.closed is None:  # it runs, or the supervisor was killed as well
        rest["start"] += before
        return
    gap = max(0.0, _between(period.opened, period.closed) - times.total)
    before = min(before, gap)
    after = gap - before
    rest["start"] += before
    if period.closed["event"] != "failed":
        rest["other"] += after  # leaving in peace
        return
    reached = period.closed.get("step")
    steps = times.step - times.from_step
    unreported_steps = 0 if reached is None else max(0, int(reached) - times.step)
    lost = min(after, unreported_steps * times.seconds.get("step", 0.0) / steps) if steps > 0 else 0.0
    rest["lost"] += lost
    rest["stopped"] += after - lost


def _periods(events: Sequence[Event]) -> tuple[list[_Period], float]:
    """When ranks were up, and the seconds within launches in which none were because of a failure."""
    periods: list[_Period] = []
    launch, idle = 0, 0.0
    down_since: Event | None = None
    for event in events:
        name = event["event"]
        current = periods[-1] if periods and periods[-1].closed is None else None
        if name == "started":
            launch += 1
            down_since = None
            periods.append(_Period(launch, event, before=max(0.0, float(event.get("uptime", 0.0)))))
        elif name == "restarted":
            if down_since is not None:
                idle += _between(down_since, event)
            elif current is not None:
                current.closed = {**event, "event": "replaced"}
            down_since = None
            periods.append(_Period(launch, event))
        elif name in ("failed", "finished", "preempted", "gave_up"):
            if current is not None and current.launch == launch:
                current.closed = event
            elif down_since is not None:
                idle += _between(down_since, event)
            down_since = event
    return periods, idle


def _key(period: _Period) -> tuple[int, int]:
    return period.launch, int(period.opened.get("attempt", 0))


def _between(first: Event, second: Event | None) -> float:
    """Seconds between two events of one launch; by the supervisor's own clock where it has told it."""
    if second is None:
        return 0.0
    if "uptime" in first and "uptime" in second:
        return max(0.0, float(second["uptime"]) - float(first["uptime"]))
    return max(0.0, _by_time_of_day(first["time"], second["time"]))


def _by_time_of_day(first: str, second: str) -> float:
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()


def in_words(found: Account, attempts: int) -> str:
    """`81.2% of 2 h 3 min in 3 attempts; the rest: start 9.1%, lost work 5.0%, …`; causes of less than 0.1% are
    left out.
    """
    shares = {CAUSES[name]: seconds / found.wall for name, seconds in found.rest.items()} if found.wall > 0 else {}
    named = [
        f"{name} {100 * share:.1f}%" for name, share in sorted(shares.items(), key=lambda s: -s[1]) if share >= 1e-3
    ]
    goodput = f"{100 * found.useful / found.wall:.1f}%" if found.wall > 0 else "unknown"
    tries = f"{attempts} attempt{'' if attempts == 1 else 's'}"
    return f"{goodput} of {_span(found.wall)} in {tries}" + (f"; the rest: {', '.join(named)}" if named else "")


def _span(seconds: float) -> str:
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.1f} s" if whole < 10 else f"{whole} s"
    minutes = whole // 60
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 120 else f"{minutes} min"
