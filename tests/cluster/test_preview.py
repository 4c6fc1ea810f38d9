"""The nodes that a run would get are told without anything being reserved."""

from __future__ import annotations

import pytest

from cluster import ClusterConfig
from cluster.errors import HeadUnreachable, ImpossiblePlacement
from cluster.preview import nodes_now
from tests.cluster.conftest import HEAD, NODES, Nodes


def test_nodes_that_could_carry_the_run_are_told_in_rank_order(nodes: Nodes) -> None:
    config = ClusterConfig(address=nodes.address, node_address=HEAD, nodes=2)
    assert nodes_now(config) == list(NODES)
    assert nodes_now(config) == list(NODES), "the first look reserved them"
    with pytest.raises(ImpossiblePlacement, match="3 nodes"):
        nodes_now(ClusterConfig(address=nodes.address, node_address=HEAD, nodes=3))


def test_head_that_does_not_answer_is_unreachable() -> None:
    with pytest.raises(HeadUnreachable):
        nodes_now(ClusterConfig(address="127.0.0.9:1", connect_seconds=0.3))
