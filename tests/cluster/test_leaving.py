"""When a run ends with its nodes, and when it goes on without them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.attempt import Attempt
from cluster.config import ClusterConfig
from cluster.hang import hang_report
from cluster.head import Head
from cluster.leaving import Leave, Leaving
from cluster.placement import Place, Slot
from cluster.processes import Report
from cluster.resizing import Roster
from cluster.signals import StopRequests
from tests.cluster.test_policy import state


def place(number: int) -> Place:
    return Place(number, f"10.0.0.{number}", f"node-{number}", object(), Slot(None, 0))


def leaving_with(used: list[Place], held: list[Place]) -> tuple[Leaving, Roster]:
    config = ClusterConfig(nodes=2, address="10.0.0.9:6379")
    roster = Roster(config, [1], None, lambda: None)
    roster.used, roster.pool._places = used, held
    return Leaving(config, roster, Head("10.0.0.9:6379"), StopRequests()), roster


def test_a_run_goes_on_without_drained_nodes_as_long_as_one_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.pool.living_nodes", list)
    first, second, spare = place(1), place(2), place(3)
    leaving, _ = leaving_with([first, second], [first, second])
    leaving.why, leaving.going = Leave.DRAIN, {first.address}
    assert leaving.goes_on
    leaving.going = {first.address, second.address}
    assert not leaving.goes_on, "saved, to be resumed"
    leaving, _ = leaving_with([first, second], [first, second, spare])
    leaving.why, leaving.going = Leave.DRAIN, {first.address, second.address}
    assert leaving.goes_on


def test_a_node_is_not_used_again_while_ray_is_to_take_it_away() -> None:
    first, second = place(1), place(2)
    _, roster = leaving_with([first, second], [first, second])
    roster.pool.leave({second.address})
    roster.pool._leaving[second.node_id] = time.monotonic() - 1.0  # the notice is over
    assert roster.pool.places == [replace(first, node_rank=0), replace(second, node_rank=1)]
    roster.pool.draining = {second.node_id}
    assert roster.pool.places == [replace(first, node_rank=0)]


class GotOn(Attempt):
    """Whose rank has beaten again since the last report."""

    def refresh(self) -> None:
        self._reports[0] = Report([state(0)], [], False)


def test_no_hang_is_reported_of_a_rank_that_has_got_on_since_it_was_last_heard_of(tmp_path: Path) -> None:
    attempt = GotOn([], 1.0, print)
    attempt._reports[0] = Report([state(0, stale=True)], [], False)
    assert attempt.hung
    assert hang_report(attempt, 0, tmp_path) is None and not list(tmp_path.iterdir())
