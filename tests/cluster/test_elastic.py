"""Runs that lose nodes and get others: with fewer, with more, away from a bad one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import NODES, Nodes, run_ranks

pytestmark = pytest.mark.timeout(300)
QUICK = {"nodes": 2, "node_counts": [1], "node_return_seconds": 0.0, "grow_seconds": 0.5, "teardown_seconds": 0.2}


def come_and_go(nodes: Nodes) -> Callable[[dict[str, Any]], None]:
    """Lose a node at the start, and add one as soon as the run goes on without it."""

    def act(event: dict[str, Any]) -> None:
        if event["event"] == "started":
            nodes.kill(NODES[1])
        if event["event"] == "restarted" and event["attempt"] == 1:
            nodes.add("127.0.0.7")

    return act


def test_a_run_goes_on_with_fewer_nodes_and_grows_again_also_after_growing_has_failed_once(
    nodes: Nodes, tmp_path: Path
) -> None:
    settings = {**QUICK, "max_restarts": 1}
    ran = run_ranks(nodes, tmp_path, "fail-when-first-grown", come_and_go(nodes), **settings)
    assert ran.outcome.exit_code == 0 and ran.outcome.attempts == 5
    again = ["resized", "restarted"]
    assert ran.names == ["started", "failed", *again, *again, "failed", *again, *again, "finished"]
    lost, failed = (event for event in ran.events if event["event"] == "failed")
    assert lost["node"] == NODES[1] and lost["decision"] == "restart"
    assert failed["exit_code"] == 3 and failed["decision"] == "restart on fewer nodes"
    both = [NODES[0], "127.0.0.7"]
    sizes = [(event["from"], event["to"], event["nodes"]) for event in ran.events if event["event"] == "resized"]
    assert sizes == [(2, 1, [NODES[0]]), (1, 2, both), (2, 1, [NODES[0]]), (1, 2, both)]
    assert [event["ranks"] for event in ran.events if event["event"] == "restarted"] == [1, 2, 1, 2]


def test_a_node_on_which_ranks_keep_failing_is_left_for_a_spare_one(nodes: Nodes, tmp_path: Path) -> None:
    ran = run_ranks(nodes, tmp_path, "fail-twice", nodes=1)
    assert ran.outcome.exit_code == 0
    decisions = [event["decision"] for event in ran.events if event["event"] == "failed"]
    assert decisions == ["restart", "restart elsewhere"]
    first, second, third = (event["nodes"] for event in ran.events if event["event"] in ("started", "restarted"))
    assert first == second != third and len(third) == 1


def test_a_node_whose_ranks_were_told_to_stop_is_left_and_the_run_goes_on(nodes: Nodes, tmp_path: Path) -> None:
    ran = run_ranks(nodes, tmp_path, "leave-for-a-node", **QUICK)
    assert ran.outcome.exit_code == 0 and ran.outcome.attempts == 2
    assert ran.names == ["started", "leaving", "resized", "restarted", "finished"]
    assert ran.events[1]["nodes"] == [NODES[1]] and ran.events[3]["nodes"] == [NODES[0]]


def test_a_node_that_ray_drains_is_left_with_everything_saved(nodes: Nodes, tmp_path: Path) -> None:
    def drain(event: dict[str, Any]) -> None:
        if event["event"] == "started":
            import ray

            node = next(node["NodeID"] for node in ray.nodes() if node["NodeManagerAddress"] == NODES[1])
            client: Any = ray._raylet.GcsClient(address=nodes.address)  # as `ray drain-node` does
            preemption, no_deadline = 2, 2**62
            accepted, why = client.drain_node(node, preemption, "a spot instance's notice", no_deadline)
            assert accepted, why

    try:
        ran = run_ranks(nodes, tmp_path, "save-once", drain, **QUICK)
    finally:
        nodes.kill(NODES[1])
    assert ran.outcome.exit_code == 0
    assert ran.names == ["started", "leaving", "resized", "restarted", "finished"]
    assert ran.events[1]["nodes"] == [NODES[1]] and "Ray" in ran.events[1]["reason"]
