"""Gradients accumulate in fp32: a loss curve does not show it, a thousand identical micro-batches do."""

from __future__ import annotations

import pytest

from tests.distributed.launch import run


@pytest.fixture(scope="module")
def errors() -> dict[tuple[int, bool], dict[str, float]]:
    cases = [
        {"model": "tied", "layout": {}, "precision": "bf16", "zero_stage": stage, "bf16_accumulation": planted}
        for stage, planted in [(1, False), (2, False), (3, False), (1, True)]
    ]
    found = run("tests.distributed.accumulation:compare", 1, cases, deadline=250)[0]
    return {(c["zero_stage"], c["bf16_accumulation"]): e for c, e in zip(cases, found, strict=True)}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_1024_identical_micro_batches_give_the_gradient_of_one(
    errors: dict[tuple[int, bool], dict[str, float]], stage: int
) -> None:
    assert errors[stage, False]["norm"] < 1e-3
    if stage == 1:  # the only one whose whole gradient is at one place before the step
        assert errors[stage, False]["gradient"] < 1e-3


def test_accumulation_in_bf16_would_be_found(errors: dict[tuple[int, bool], dict[str, float]]) -> None:
    assert errors[1, True]["gradient"] > 1e-2
    assert errors[1, True]["norm"] > 1e-2
