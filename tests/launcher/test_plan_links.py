"""Which links a group's traffic takes, by where its members are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.plan.efficiency import default_efficiency
from launcher.plan.hardware import accelerator
from launcher.plan.links import links
from modeling.layout import Layout

H100 = accelerator("h100")
EFFICIENCY = default_efficiency(H100)
INSIDE = EFFICIENCY.link * H100.link_bandwidth
OUTSIDE = EFFICIENCY.network * H100.network_bandwidth


@pytest.mark.parametrize(
    ("layout", "replicas", "data", "pipeline"),
    [
        (Layout(tensor=8), 1, INSIDE, INSIDE),  # one rank a group: nothing is sent
        (Layout(), 8, INSIDE, INSIDE),  # all replicas on a node
        (Layout(tensor=8), 16, OUTSIDE, OUTSIDE),  # each on a node of its own: one adapter a group
        (Layout(tensor=2), 16, 4 * OUTSIDE, OUTSIDE),  # four on a node: four adapters for their rings
        (Layout(), 64, min(INSIDE, 8 * OUTSIDE), OUTSIDE),
        (Layout(tensor=2, pipeline=4), 1, INSIDE, INSIDE),  # all stages on one node
        (Layout(tensor=2, pipeline=4), 2, INSIDE, OUTSIDE),  # two stages on a node, and the next is on the other
    ],
)
def test_groups_take_the_links_between_their_members(
    layout: Layout, replicas: int, data: float, pipeline: float
) -> None:
    found = links(layout, replicas, 8, H100, EFFICIENCY)
    assert found.tensor == INSIDE
    assert (found.data, found.pipeline) == (data, pipeline)


@given(bytes_=st.floats(0, 1e12), collectives=st.integers(1, 100))
def test_nothing_takes_no_time_and_something_at_least_its_start(bytes_: float, collectives: int) -> None:
    found = links(Layout(), 8, 8, H100, EFFICIENCY)
    seconds = found.seconds(bytes_, found.data, collectives)
    assert seconds == 0 if bytes_ == 0 else seconds >= bytes_ / found.data + collectives * EFFICIENCY.latency * 0.999
    assert found.seconds(0.0, found.data, collectives) == 0
