"""Seconds of communication: collectives as rings, by where their members are."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan.efficiency import Efficiency
from launcher.plan.hardware import Accelerator
from modeling.layout import Layout


@dataclass(frozen=True)
class Links:
    """Bytes a second that a rank sends to its peers of an axis, and how its groups lie over nodes.

    Ranks are in order of tensor, data, pipeline (modeling.layout.Layout.place), and nodes take them in turn.
    """

    tensor: float
    data: float
    pipeline: float
    latency: float

    def seconds(self, bytes_: float, bandwidth: float, collectives: float = 1.0) -> float:
        """To send `bytes_` in all, in so many collectives."""
        return bytes_ / bandwidth + collectives * self.latency if bytes_ else 0.0


def links(layout: Layout, replicas: int, gpus_per_node: int, accelerator: Accelerator, efficiency: Efficiency) -> Links:
    """Where a group has several members on a node, its rings leave the node through all of their network adapters."""
    inside = efficiency.link * accelerator.link_bandwidth
    outside = efficiency.network * accelerator.network_bandwidth
    model = layout.tensor
    members = max(1, min(replicas, gpus_per_node // model)) if model <= gpus_per_node else 1
    data = inside if replicas <= members else min(inside, members * outside)
    # The next stage is a whole stage's ranks away: of several nodes, some stage is followed by one on another.
    neighbours = replicas * layout.model_parallel <= gpus_per_node
    return Links(
        tensor=inside if layout.tensor <= gpus_per_node else outside,
        data=data,
        pipeline=inside if neighbours else outside,
        latency=efficiency.latency,
    )
