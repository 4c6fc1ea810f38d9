"""Several Ray nodes on this machine, on loopback addresses of their own, that can be killed and come back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cluster.local import LocalRay, forget_cached_settings

HEAD = "127.0.0.2"


class Machines:
    """A head without cores, and one node of one core for each address."""

    def __init__(self, cluster: Any, addresses: Sequence[str], environment: dict[str, str]) -> None:
        self._cluster = cluster
        self._nodes: dict[str, Any] = {}
        self.environment = environment
        """What a process needs that joins the cluster."""
        for address in addresses:
            self.add(address)
        cluster.wait_for_nodes(timeout=120)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, address: str) -> None:
        self._nodes[address] = self._cluster.add_node(node_ip_address=address, num_cpus=1, wait=False)

    def kill_head(self) -> None:
        """End the head, which carries no ranks."""
        self._cluster.remove_node(self._cluster.head_node, allow_graceful=False)

    def kill(self, address: str) -> None:
        """End a node's raylet, and with it everything on the node, without warning."""
        self._cluster.remove_node(self._nodes.pop(address), allow_graceful=False)


@contextmanager
def machines(addresses: Sequence[str]) -> Iterator[Machines]:
    """Started with a token; nothing of them is left afterwards. Changes this process's environment meanwhile."""
    local = LocalRay()  # for its private directory and its settings alone
    environment = {**local.environment(), "RAY_TMPDIR": str(local.root)}
    before = dict(os.environ)
    os.environ.update(environment)
    (local.root / "ray").mkdir()
    forget_cached_settings()
    from ray.cluster_utils import Cluster

    cluster: Any = None
    try:
        head = {"node_ip_address": HEAD, "num_cpus": 0, "include_dashboard": False, "no_monitor": True}
        head |= {"include_log_monitor": False, "temp_dir": str(local.root / "ray"), "dashboard_agent_listen_port": 0}
        cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
        yield Machines(cluster, addresses, environment)
    finally:
        local.stop(lambda: None if cluster is None else cluster.shutdown())
        os.environ.clear()
        os.environ.update(before)
