"""One Ray of several nodes, shared by all tests that need one: a start costs seconds."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster import ClusterConfig, Outcome, run
from cluster.leftovers import holders_of, tree_of
from cluster.local import LocalRay, forget_cached_settings

RANK = Path(__file__).with_name("rank.py")
HEAD, NODES = "127.0.0.2", ("127.0.0.3", "127.0.0.4")


@dataclass
class Nodes:
    """A head without cores, and one node of one core for each of `NODES`."""

    cluster: Any
    by_address: dict[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, address: str, gpus: int = 0) -> None:
        node = self.cluster.add_node(node_ip_address=address, num_cpus=1, num_gpus=gpus, wait=False)
        self.by_address[address] = node

    def kill(self, address: str) -> None:
        self.cluster.remove_node(self.by_address.pop(address), allow_graceful=False)

    def restore(self) -> None:
        """Be the nodes that every test expects, whatever an earlier one has killed, added, or not waited for."""
        for address, node in list(self.by_address.items()):
            if address not in NODES or node.dead_processes():
                self.kill(address)
        for address in NODES:
            if address not in self.by_address:
                self.add(address)
        deadline = time.monotonic() + 120.0
        while (alive := self._alive()) != sorted((HEAD, *NODES)):  # by name: one more and one less are not none
            assert time.monotonic() < deadline, alive
            time.sleep(0.05)  # the head misses a killed node by and by

    def _alive(self) -> list[str]:
        """Addresses as the head knows them; one that has left and come back stands there twice for a moment."""
        return sorted(str(n["NodeManagerAddress"]) for n in self.cluster.global_state.node_table() if n["Alive"])


@pytest.fixture
def nodes(shared_nodes: Nodes) -> Nodes:
    """The same at the start of every test, in whatever order they run."""
    shared_nodes.restore()
    return shared_nodes


@pytest.fixture(scope="session")
def shared_nodes() -> Iterator[Nodes]:
    """Starts with a token, as Trestle's own Ray does, and checks that it leaves no process."""
    local = LocalRay()  # only for its private directory and settings
    before = dict(os.environ)
    os.environ.update(local.environment(), RAY_TMPDIR=str(local.root))
    os.environ.update(RAY_health_check_period_ms="500")  # 3000 by default: a killed node is missed after five of them
    (local.root / "ray").mkdir()
    forget_cached_settings()
    from ray.cluster_utils import Cluster

    cluster = None
    try:
        head = {"node_ip_address": HEAD, "num_cpus": 0, "include_dashboard": False, "no_monitor": True}
        head |= {"include_log_monitor": False, "temp_dir": str(local.root / "ray"), "dashboard_agent_listen_port": 0}
        cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
        started = Nodes(cluster)
        for address in NODES:
            started.add(address)
        cluster.wait_for_nodes(timeout=120)
        yield started
    finally:
        local.stop(lambda: None if cluster is None else cluster.shutdown())
        deadline = time.monotonic() + 60.0  # the helpers of a killed node notice by and by that it is gone
        while (left := holders_of(str(local.root))) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.environ.clear()
        os.environ.update(before)
        assert not left


@dataclass
class Ran:
    """Everything that a run let its caller see."""

    outcome: Outcome
    events: list[dict[str, Any]]
    output: list[str]
    logs: Path

    @property
    def names(self) -> list[str]:
        return [event["event"] for event in self.events]


def run_ranks(
    ray: Nodes, tmp_path: Path, behaviour: str, on_event: Any = None, node_counts: Sequence[int] = (), **settings: Any
) -> Ran:
    """Run `rank.py behaviour` on the shared nodes."""
    import sys

    values: dict[str, Any] = {"heartbeat_seconds": 60.0, "start_seconds": 120.0, "grace_seconds": 20.0, **settings}
    events: list[dict[str, Any]] = []
    output: list[str] = []

    def tell(event: dict[str, Any]) -> None:
        events.append(event)
        if on_event is not None:
            on_event(event)

    outcome = run(
        [sys.executable, str(RANK), behaviour],
        ClusterConfig(address=ray.address, node_address=HEAD, **values),
        tensor_parallel=1,
        environment={"GIVEN": "yes"},
        log_directory=tmp_path / "logs",
        on_event=tell,
        on_output=output.append,
        node_counts=node_counts,
    )
    assert not tree_of(str(RANK)), "a rank was left behind"
    return Ran(outcome, events, output, tmp_path / "logs")
