"""Who is slow, and whose numbers differ: the pure parts, by hand and for random faults."""

from __future__ import annotations

import random
from statistics import median

import pytest
import torch

from training.health.fingerprint import fingerprint, fingerprint_of_all
from training.health.integrity import odd_ones
from training.health.stragglers import StragglerDetector


def test_a_rank_is_told_once_after_it_has_been_slow_for_long_enough_and_once_when_it_no_longer_is() -> None:
    detector = StragglerDetector([0] * 4, factor=1.5, seconds=60)
    slow, well = [1.0, 1.1, 2.0, 0.9], [1.0, 1.1, 1.2, 0.9]
    assert [detector.observe(slow, 20.0) for _ in range(2)] == [[], []]
    (change,) = detector.observe(slow, 20.0)
    assert (change.rank, change.slow, change.factor, change.seconds) == (2, True, 2.0, 60.0)
    assert detector.observe(slow, 20.0) == []
    assert [detector.observe(well, 30.0) for _ in range(2)] == [[], []]
    (change,) = detector.observe(well, 30.0)
    assert (change.rank, change.slow, change.seconds) == (2, False, 90.0)


def test_one_good_interval_begins_the_wait_anew_and_a_single_long_one_is_not_enough() -> None:
    detector = StragglerDetector([0] * 3, factor=1.5, seconds=60)
    for values in ([1, 1, 3], [1, 1, 3], [1, 1, 1], [1, 1, 3], [1, 1, 3]):
        assert detector.observe(values, 100.0) == []
    assert [change.rank for change in detector.observe([1, 1, 3], 100.0)] == [2]


def test_only_ranks_of_the_same_place_are_compared() -> None:
    """Two stages, of which the second works three times as long; in the second replica its rank is slow."""
    detector = StragglerDetector(["first", "first", "second", "second"], factor=1.5, seconds=0)
    assert detector.factors([1.0, 1.0, 3.0, 6.0]) == [1.0, 1.0, 0.5, 2.0]
    told = [change.rank for _ in range(3) for change in detector.observe([1.0, 1.0, 3.0, 6.0], 1.0)]
    assert told == [3]
    alone = StragglerDetector(["first", "second"], factor=1.5, seconds=0)
    assert alone.factors([1.0, 9.0]) == [None, None] and alone.observe([1.0, 9.0], 1e9) == []


def test_each_rank_is_compared_with_the_median_of_the_others() -> None:
    chance = random.Random(4)
    for count in (1, 2, 3, 4, 7, 8):
        values = [chance.choice([1.0, 2.0, 3.0, 5.5]) for _ in range(count)]
        wanted = [
            value / median(values[:rank] + values[rank + 1 :]) if count > 1 else None
            for rank, value in enumerate(values)
        ]
        assert StragglerDetector([0] * count, 1.5, 60).factors(values) == wanted


def test_noise_around_equal_ranks_raises_no_alarm() -> None:
    chance = random.Random(3)
    detector = StragglerDetector([0] * 64, factor=1.5, seconds=60)
    for _ in range(2000):
        assert detector.observe([chance.lognormvariate(0, 0.2) for _ in range(64)], 10.0) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8])
def test_every_flipped_bit_changes_the_fingerprint(dtype: torch.dtype) -> None:
    chance = random.Random(1)
    length = (1 << 20) + 77  # more than one chunk
    tensor = (torch.arange(length) % 120).to(dtype)
    before = int(fingerprint(tensor))
    raw = tensor.view(torch.uint8)
    for _ in range(20):
        byte, bit = chance.randrange(raw.numel()), 1 << chance.randrange(8)
        raw[byte] ^= bit
        assert int(fingerprint(tensor)) != before
        raw[byte] ^= bit
    assert int(fingerprint(tensor)) == before


def test_the_fingerprint_sees_order_negative_zero_and_which_tensor_it_was() -> None:
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])
    assert int(fingerprint(a)) != int(fingerprint(b))
    assert int(fingerprint(torch.tensor([0.0]))) != int(fingerprint(torch.tensor([-0.0])))
    nan = torch.tensor([float("nan")])
    assert int(fingerprint(nan)) == int(fingerprint(nan.clone()))
    cpu = torch.device("cpu")
    assert int(fingerprint_of_all([a, b], cpu)) != int(fingerprint_of_all([b, a], cpu))
    assert int(fingerprint(torch.empty(0))) == 0
    grid = torch.arange(12.0).view(3, 4)
    assert int(fingerprint(grid.T)) == int(fingerprint(grid.T.contiguous()))


@pytest.mark.parametrize(
    ("values", "kinds", "odd", "certain"),
    [
        ([7, 7, 7], [0, 0, 0], [], True),
        ([7, 8, 7], [0, 0, 0], [1], True),
        ([7, 8], [0, 0], [0, 1], False),
        ([7, 8, 9, 7], [0, 0, 0, 0], [0, 1, 2, 3], False),
        ([7, 1, 7, 2, 7, 1], ["a", "b"] * 3, [3], True),
        ([7, 1], ["a", "b"], [], True),
    ],
)
def test_the_majority_of_replicas_says_who_differs(
    values: list[int], kinds: list[object], odd: list[int], certain: bool
) -> None:
    assert odd_ones(values, kinds) == (odd, certain)
