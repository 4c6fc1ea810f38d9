"""Which requests fit which nodes, and what is said when they do not."""

from __future__ import annotations

import pytest

from cluster.config import ClusterConfig
from cluster.errors import ImpossiblePlacement, UserError
from cluster.placement import Bundle, Offer, address_order, fit

LAPTOP = Offer("127.0.0.1", 2, 0)
GPU_NODES = [Offer("10.0.0.1", 96, 8), Offer("10.0.0.2", 64, 8), Offer("10.0.0.3", 8, 0)]


def test_ranks_may_outnumber_cores() -> None:
    assert fit([LAPTOP], ClusterConfig(ranks_per_node=4)) == Bundle(cpus=2, gpus=0)


def test_one_gpu_a_rank_is_reserved_where_nodes_have_them() -> None:
    assert fit(GPU_NODES, ClusterConfig(address="h:1", nodes=2, ranks_per_node=8)) == Bundle(cpus=8, gpus=8)


def test_gpus_can_be_left_alone() -> None:
    config = ClusterConfig(address="h:1", nodes=3, ranks_per_node=16, gpus_per_rank=0)
    assert fit(GPU_NODES, config) == Bundle(cpus=8, gpus=0)


def test_too_many_ranks_for_the_gpus_are_refused_with_the_way_out() -> None:
    with pytest.raises(ImpossiblePlacement, match=r"1 node .* 2 GPUs \(1 per rank\).*gpus_per_rank to 0") as raised:
        fit([Offer("127.0.0.1", 8, 1)], ClusterConfig(ranks_per_node=2))
    assert raised.value.exit_code == 2


def test_too_many_nodes_are_refused_with_what_there_is() -> None:
    with pytest.raises(ImpossiblePlacement, match=r"needs 4 nodes .* has 3 nodes \(10.0.0.1: 96 CPUs, 8 GPUs; "):
        fit(GPU_NODES, ClusterConfig(address="h:1", nodes=4))


def test_a_node_without_cores_carries_no_ranks() -> None:
    with pytest.raises(ImpossiblePlacement):
        fit([Offer("10.0.0.1", 0, 0)], ClusterConfig())


def test_nodes_are_ordered_by_number_not_by_text() -> None:
    assert sorted(["10.0.0.10", "node-b", "10.0.0.9", "node-a"], key=address_order) == [
        "10.0.0.9",
        "10.0.0.10",
        "node-a",
        "node-b",
    ]


@pytest.mark.parametrize(
    ("config", "tensor_parallel", "says"),
    [
        (ClusterConfig(ranks_per_node=3), 2, "a tensor-parallel group would cross nodes: use 4 ranks per node"),
        (ClusterConfig(nodes=2), 1, "set cluster.address"),
        (ClusterConfig(ranks_per_node=0), 1, "ranks_per_node is 0"),
        (ClusterConfig(max_restarts=-1), 1, "max_restarts is -1"),
        (ClusterConfig(gpus_per_rank=-1), 1, "gpus_per_rank is -1"),
        (ClusterConfig(heartbeat_seconds=0), 1, "heartbeat_seconds is 0"),
        (ClusterConfig(heartbeat_seconds=float("nan")), 1, "heartbeat_seconds is nan"),
        (ClusterConfig(grace_seconds=-1), 1, "grace_seconds is -1"),
        (ClusterConfig(address="head"), 1, "must look like host:6379"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(config: ClusterConfig, tensor_parallel: int, says: str) -> None:
    with pytest.raises(UserError, match=says) as raised:
        config.check(tensor_parallel)
    assert raised.value.exit_code == 2 and "\n" not in str(raised.value)
