"""Two ranks on gloo that hang, each test in another way: what the report says of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.agent import Agent
from cluster.diagnosis import Failure, RankState, culprit_of_hang
from cluster.evidence import Evidence
from cluster.hang import write
from cluster.processes import Launch, RankGroup

RANK = Path(__file__).with_name("hanging_rank.py")
ARRIVED: dict[str, Callable[[RankState, Evidence], object]] = {
    "sleep": lambda state, evidence: str(evidence.function).startswith("sleep_as_if_reading_data ("),
    "stop": lambda state, evidence: state.stopped,
    "other": lambda state, evidence: evidence.waiting,
}
"""Whether rank 1 is where it is to hang: on a busy machine it may have been asked on the way there."""
pytestmark = pytest.mark.timeout(400)


def hung(tmp_path: Path, how: str) -> tuple[Failure, dict[int, Evidence]]:
    """Start two ranks, wait until both have fallen silent in a collective, ask them, and end them."""
    launch = Launch(
        command=[sys.executable, str(RANK), how],
        working_directory=str(tmp_path),
        environment={"PYTHONPATH": str(RANK.parents[2]), "OMP_NUM_THREADS": "1"},
        log_directory=str(tmp_path / "logs"),
        attempt=0,
        node="here",
        node_rank=0,
        ranks_per_node=2,
        gpus=0,
        world_size=2,
        master_address="127.0.0.1",
        master_port=Agent(str(tmp_path)).free_port(),
        heartbeat_seconds=0.5,
        start_seconds=300.0,
    )
    group = RankGroup(launch, tmp_path / "beats")
    group.start()
    try:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            states = group.report(1.0).states
            assert all(state.exit_code is None for state in states), (tmp_path / "logs/rank-00000.log").read_text()
            if not all(state.stale for state in states):
                continue
            started = time.monotonic()
            evidence = group.evidence(20.0)
            seconds = time.monotonic() - started
            states = group.states()
            if evidence[0].waiting and ARRIVED[how](states[1], evidence[1]):
                assert seconds < 40.0
                failure = culprit_of_hang(states, evidence)
                write(tmp_path / "hang", "attempt 0", failure, states, evidence)
                return failure, evidence
        raise AssertionError(f"never seen to hang: {evidence}")
    finally:
        group.stop(0.0)


def test_the_rank_that_does_not_wait_is_named_with_the_function_that_it_is_in(tmp_path: Path) -> None:
    failure, evidence = hung(tmp_path, "sleep")
    assert failure.rank == 1 and failure.step == 7
    assert "rank 1 does not wait for the others but is in sleep_as_if_reading_data (" in failure.reason
    assert failure.reason.endswith("at step 7; rank 0 waits in all_reduce no. 4 of default_pg (group 0)")
    assert evidence[0].members == (0, 1) and evidence[1].entered["default_pg (group 0)"] == 3
    assert failure.reason in (tmp_path / "hang/report.txt").read_text()
    assert "in sleep_as_if_reading_data" in (tmp_path / "hang/rank-00001.txt").read_text()
    assert "waits in all_reduce no. 4 of" in (tmp_path / "hang/rank-00000.txt").read_text()


def test_a_stopped_rank_is_named_beside_one_that_waits_for_it(tmp_path: Path) -> None:
    failure, evidence = hung(tmp_path, "stop")
    assert failure.rank == 1 and failure.reason.endswith("rank 1 is stopped by a signal, at step 7")
    assert evidence[0].waits_in == "all_reduce no. 4 of default_pg (group 0)" and evidence[1].waiting is None


def test_ranks_that_wait_in_two_different_calls_are_told_apart(tmp_path: Path) -> None:
    failure, evidence = hung(tmp_path, "other")
    assert evidence[0].waits_in == "recv"  # which the flight recorder does not have: known by the stack
    assert evidence[1].waits_in == "all_reduce no. 1 of PAIR (group 1)" and evidence[1].waiting
    assert all(one.waits_in in failure.reason for one in evidence.values())
