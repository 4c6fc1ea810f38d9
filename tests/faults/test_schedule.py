"""The schedule of faults: the same for the same seed, fair to every kind, with room between faults."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tests.faults.schedule import KINDS, schedule, steps_for


@given(st.integers(0, 2**32), st.integers(0, 200), st.integers(2, 60), st.integers(1, 8))
def test_schedule_is_fair_reproducible_and_leaves_room(seed: int, faults: int, gap: int, ranks: int) -> None:
    plan = schedule(seed, faults, gap=gap, ranks=ranks)
    assert plan == schedule(seed, faults, gap=gap, ranks=ranks) and len(plan) == faults
    counts = Counter(fault.kind for fault in plan)
    assert all(faults // len(KINDS) <= counts[kind] <= -(-faults // len(KINDS)) for kind in KINDS)
    assert all(0 <= fault.rank < ranks for fault in plan)
    steps = [0, *(fault.step for fault in plan), steps_for(faults, gap)]
    assert all(later - earlier >= gap // 2 for earlier, later in itertools.pairwise(steps))


def test_other_seeds_give_other_schedules() -> None:
    assert len({tuple(schedule(seed, 16, gap=24, ranks=2)) for seed in range(20)}) == 20
