"""The gradient cache: for any ranks and micro-batches, the gradient is that of the whole batch in one process."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.distributed.launch import run

TOLERANCE = {"fp64": 1e-12, "fp32": 1e-5}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout": 0.3, "patch_dropout": 0.5},
    "locked": {"lock_image": True, "dropout": 0.2},
    "locked text": {"lock_text": True},
    "sigmoid": {"loss": "sigmoid", "initial_bias": -2.0},
    "nt_xent": {"loss": "nt_xent", "patch_dropout": 0.25},
}


def sizes_of(world: int) -> list[list[list[int]]]:
    """Micro-batch sizes of each rank: one, two and four micro-batches, even and uneven ranks, other numbers of them."""
    return [
        [[5]] * (world - 1) + [[4]],
        [[3, 3]] * world,
        [[2, 2]] * (world - 1) + [[2, 1]],
        [[1, 2, 1, 1]] + [[1, 1, 1, 1]] * (world - 1),
        [[2, 1, 1]] + [[3]] * (world - 1),
    ]


def cases_of(world: int) -> list[dict[str, Any]]:
    shapes = sizes_of(world)
    cases = [
        {"name": name, "model": model, "dtype": "fp64", "sizes": sizes}
        for number, (name, model) in enumerate(MODELS.items())
        for sizes in (shapes if name in ("plain", "dropout") else [shapes[number % len(shapes)]])
    ]
    cases += [{"name": "plain", "model": {}, "dtype": "fp32", "sizes": sizes} for sizes in shapes]
    cases += [
        {"name": "scale 100", "model": {}, "dtype": dtype, "scale": 100.0, "sizes": shapes[2], "aligned": aligned}
        for dtype in ("fp64", "fp32")
        for aligned in (False, True)
    ]
    return cases


@cache
def results(world: int) -> list[dict[str, Any]]:
    return run("tests.distributed.coupled:gradients", world, cases_of(world), deadline=240)[0]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_gradient_is_that_of_the_whole_batch(world: int) -> None:
    found = results(world)
    assert len(found) == len(cases_of(world))
    for one in found:
        tolerance = TOLERANCE[one["case"]["dtype"]]
        assert one["worst"][1] <= tolerance, one
        assert one["scale"] <= tolerance and one["loss"] <= tolerance, one


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_norm_that_clipping_sees_is_the_whole_batchs(world: int) -> None:
    for one in results(world):
        assert one["norm"] <= TOLERANCE[one["case"]["dtype"]], one
