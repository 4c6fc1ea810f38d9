"""Where the time of a run went, over attempts and launches: by hand, and whatever the clocks say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.metrics.events import EventLog
from training.metrics.goodput import CAUSES, AttemptTimes, account, in_words
from training.metrics.ledger import FILE, Ledger, goodput_in_words, read_ledger, restarts_after_failures

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float, event: str, *, uptime: float | None = None, **fields: Any) -> dict[str, Any]:
    entry = {"event": event, "time": (START + timedelta(seconds=seconds)).isoformat(), **fields}
    return entry if uptime is None else {**entry, "uptime": uptime}


def times(launch: int, attempt: int, begun: float, steps: tuple[int, int], **seconds: float) -> AttemptTimes:
    return AttemptTimes(launch, attempt, (START + timedelta(seconds=begun)).isoformat(), *steps, seconds=seconds)


def test_a_failure_a_restart_and_a_second_launch_by_hand() -> None:
    events = [
        at(5, "started", uptime=5.0, attempt=0),
        at(50, "checkpointed", step=20),
        at(125, "failed", uptime=125.0, attempt=0, step=42),
        at(130, "restarted", uptime=130.0, attempt=1),
        at(200, "preempted", uptime=200.0, attempt=1, step=50),
        at(604_800, "started", uptime=0.0, attempt=0),  # a week later
    ]
    attempts = [
        # Up for 120 s: 2 until the process began, 88 told, then 30 of which two more steps of 2 s were done.
        times(1, 0, 7, (0, 40), start=5.0, step=80.0, data=2.0, checkpoint=1.0),
        # Up for 70 s: 1, 68 told, 1 to leave in peace. From the checkpoint of step 20, with 40 s of kept steps.
        times(1, 1, 131, (20, 50), start=4.0, step=60.0, data=3.0, validation=1.0),
        times(2, 0, 604_801, (50, 60), start=4.0, step=20.0, other=0.5),
    ]
    found = account(events, attempts, useful_seconds=40.0 + 60.0 + 20.0)
    assert found.useful == 120.0
    assert found.rest == {
        "start": 5.0 + (2.0 + 5.0) + (1.0 + 4.0) + (1.0 + 4.0),
        "lost": 40.0 + 4.0,
        "checkpoint": 1.0,
        "data": 5.0,
        "validation": 1.0,
        "check": 0.0,
        "stopped": 26.0 + 5.0,
        "other": 1.0 + 0.5,
    }
    assert found.wall == pytest.approx(200.0 + 25.5)
    assert sum(found.shares().values()) == pytest.approx(1.0)
    told = in_words(found, 3)
    assert told.startswith(
        "53.2% of 3 min in 3 attempts; the rest: lost work 19.5%, failures and hangs 13.7%, start 9.8%"
    )


def test_without_a_supervisor_the_attempts_alone_are_counted() -> None:
    found = account(
        [], [times(0, 0, 0, (0, 10), start=5.0, step=10.0), times(0, 0, 50, (5, 20), start=5.0, step=15.0)], 20.0
    )
    assert (found.useful, found.rest["start"], found.rest["lost"], found.wall) == (20.0, 10.0, 5.0, 35.0)
    assert account([], [], 0.0).shares() == {}


def test_a_clock_that_is_set_back_or_forward_moves_no_more_than_the_launch_of_ranks() -> None:
    def run(jump: float) -> dict[str, float]:
        events = [
            at(0, "started", uptime=4.0, attempt=0),
            at(50 + jump, "failed", uptime=54.0, attempt=0, step=20),
            at(52 + jump, "restarted", uptime=56.0, attempt=1),
            at(90 + jump, "finished", uptime=94.0, attempt=1),
        ]
        attempts = [
            times(1, 0, 1, (0, 20), start=4.0, step=40.0),
            times(1, 1, 53 + jump, (10, 30), start=4.0, step=32.0),
        ]
        return account(events, attempts, 52.0).shares()

    assert run(86_400.0) == run(-86_400.0) == run(0.0)


NAMES = ["started", "restarted", "failed", "preempted", "finished", "gave_up", "checkpointed", "resized"]
MOMENTS = st.floats(-1e6, 1e6)
EVENTS = st.lists(
    st.builds(
        at, MOMENTS, st.sampled_from(NAMES), uptime=st.none() | st.floats(0, 1e6), attempt=st.integers(0, 3),
        step=st.integers(0, 1000),
    ),
    max_size=12,
)  # fmt: skip
SPENT = st.dictionaries(st.sampled_from(["step", *CAUSES]), st.floats(0, 1e6))
ATTEMPTS = st.lists(
    st.builds(
        lambda launch, attempt, begun, low, more, spent: times(launch, attempt, begun, (low, low + more), **spent),
        st.integers(0, 3), st.integers(0, 3), MOMENTS, st.integers(0, 500), st.integers(0, 500), SPENT,
    ),
    max_size=5,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(EVENTS, ATTEMPTS, st.floats(0, 1e7))
def test_shares_are_shares_whatever_the_clocks_and_the_order_of_events(
    events: list[dict[str, Any]], attempts: list[AttemptTimes], useful: float
) -> None:
    shares = account(events, attempts, useful).shares()
    if shares:
        assert set(shares) == {"goodput", *(f"goodput/{cause}" for cause in CAUSES)}
        assert all(-1e-9 <= share <= 1 + 1e-9 for share in shares.values())
        assert sum(shares.values()) == pytest.approx(1.0)


def test_restarts_that_were_planned_are_not_counted() -> None:
    grown, left, failed = ["resized", "restarted"], ["leaving", "resized", "restarted"], ["failed", "restarted"]
    for names, count in (
        (["started"], 0),
        (["started", *grown, *left], 0),
        (["started", *failed, *grown, "failed", *grown, *left], 2),
        (["started", "failed", "gave_up", "started", *grown, *failed], 1),
    ):
        assert restarts_after_failures([{"event": name} for name in names]) == count


def test_what_attempts_report_survives_them(tmp_path: Path) -> None:
    events = EventLog(tmp_path / "events.jsonl")
    assert goodput_in_words(tmp_path) is None
    events.write("started", attempt=0, uptime=1.0)
    first = Ledger(tmp_path, 0, 0, seconds=0.0)
    shares = first.figures(10, 8.0, {"start": 1.0, "step": 8.0, "data": 1.0})
    assert shares["goodput"] == pytest.approx(8 / 11, abs=1e-3)
    events.write("failed", attempt=0, uptime=11.0, step=10)
    events.write("restarted", attempt=1, uptime=11.0)
    second = Ledger(tmp_path, 1, 5, seconds=0.0)
    second.report(8, 4.0 + 3.0, {"start": 1.0, "step": 3.0})
    attempts, useful = read_ledger(tmp_path / FILE)
    assert [(one.launch, one.attempt, one.from_step, one.step) for one in attempts] == [(1, 0, 0, 10), (1, 1, 5, 8)]
    assert useful == 7.0
    told = goodput_in_words(tmp_path)
    assert told is not None and told.startswith("46.7% of 15 s in 2 attempts; the rest: lost work 26.7%, start 20.0%")
    (tmp_path / FILE).write_text("{")
    assert read_ledger(tmp_path / FILE) == ([], 0.0)
