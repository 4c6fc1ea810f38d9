"""On how many nodes to go on, without any node."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import ClusterConfig
from cluster.sizes import LONGEST_PAUSE, Growth, Sizes


def config(nodes: int, min_nodes: int | None = None) -> ClusterConfig:
    return ClusterConfig(address="h:1", nodes=nodes, min_nodes=min_nodes)


def test_sizes_lie_between_the_least_and_the_number_asked_for() -> None:
    assert Sizes.of(config(8), (12, 6, 4, 2, 1)).counts == (8, 6, 4, 2, 1)
    assert Sizes.of(config(8, min_nodes=4), (6, 4, 2)).counts == (8, 6, 4)
    assert Sizes.of(config(8, min_nodes=8), (6, 4, 2)).counts == (8,)


def test_lost_nodes_are_waited_for_and_then_done_without() -> None:
    sizes = Sizes((4, 2, 1))
    assert sizes.choose(3, current=4, waited=9.9, patience=10) is None
    assert sizes.choose(3, current=4, waited=10.0, patience=10) == 2, "the third stays as a spare"
    assert sizes.choose(3, current=2, waited=0.0, patience=10) == 2, "nobody waits again for what was given up"
    assert sizes.choose(4, current=2, waited=0.0, patience=10) == 4, "a restart is the time to grow"
    assert sizes.choose(0, current=2, waited=99.0, patience=10) is None


COUNTS = st.lists(st.integers(1, 64), min_size=1, unique=True).map(lambda found: tuple(sorted(found, reverse=True)))


@given(COUNTS, st.integers(0, 80), st.integers(1, 64), st.floats(0, 100), st.floats(0, 100))
def test_what_is_chosen_is_allowed_at_hand_and_as_many_as_possible(
    counts: tuple[int, ...], available: int, current: int, waited: float, patience: float
) -> None:
    chosen = Sizes(counts).choose(available, current, waited, patience)
    fitting = [count for count in counts if count <= available]
    if chosen is None:
        assert not fitting or (max(fitting) < current and waited < patience)
    else:
        assert chosen == max(fitting)


@pytest.mark.parametrize("failures", [0, 1, 3])
def test_growing_waits_longer_each_time_it_fails(failures: int) -> None:
    growth = Growth(settle_seconds=10.0, changed_at=100.0)
    assert not growth.allowed(109.9) and growth.allowed(110.0)
    for _ in range(failures):
        growth.failed(200.0)
    pause = 10.0 * 2**failures
    assert growth.failures == 0 or (not growth.allowed(200.0 + pause - 0.1) and growth.allowed(200.0 + pause))
    growth.worked()
    assert growth.allowed(210.0)


def test_growing_is_tried_again_at_least_every_hour() -> None:
    growth = Growth(settle_seconds=30.0, changed_at=0.0)
    for _ in range(1000):
        growth.failed(0.0)
    assert growth.allowed(LONGEST_PAUSE)
