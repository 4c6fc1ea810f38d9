"""Checks of replicas and of recomputed steps: they change nothing, and name the rank whose bit was flipped."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.launch import run

DATA_2 = {"tensor": 1, "pipeline": 1, "virtual_pipeline": 1, "sequence": False}
TENSOR_2 = DATA_2 | {"tensor": 2, "sequence": True}
PIPELINE_2 = DATA_2 | {"pipeline": 2}

CASES: list[dict[str, Any]] = [
    {"model": "tied", "layout": DATA_2, "zero_stage": 0, "precision": "fp32", "flip": 1},
    {"model": "llama", "layout": DATA_2, "zero_stage": 1, "precision": "bf16", "flip": 1},
    {"model": "tied", "layout": DATA_2, "zero_stage": 1, "precision": "fp32", "flip": 0},
    {"model": "tied", "layout": DATA_2, "zero_stage": 2, "precision": "bf16", "flip": 1},
    {"model": "tied", "layout": DATA_2, "zero_stage": 3, "precision": "bf16", "flip": 1},
    {"model": "tied", "layout": TENSOR_2, "zero_stage": 1, "precision": "bf16", "flip": 1},
    {"model": "tied", "layout": PIPELINE_2, "zero_stage": 1, "precision": "bf16", "flip": 0},
]
OTHERS = "weights differ from those of the other replicas"
MASTERS = "weights differ from the masters that they were made from"
pytestmark = pytest.mark.timeout(420 + 60)


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    first, second = run("tests.distributed.integrity:run_cases", 2, CASES, deadline=420)
    assert [one["found"] for one in first] == [one["found"] for one in second], "ranks disagree"
    return first


def test_checked_steps_are_the_same_steps_to_the_bit(results: list[dict[str, Any]]) -> None:
    for one in results:
        assert one["checked"] == one["plain"], one["case"]


def test_a_flipped_bit_is_found_and_its_rank_named(results: list[dict[str, Any]]) -> None:
    for one in results:
        case, found = one["case"], one["found"]
        if case["zero_stage"] == 3:
            continue
        replicas, rank = case["layout"] == DATA_2, [case["flip"]]
        assert found["nothing"] is None, case
        if case["zero_stage"] == 0:  # two replicas, and nobody to say which is right; masters are the weights
            assert found["weight"] == found["master"] == [[0, 1], OTHERS]
            continue
        # Alone with its part of the model, a rank has its masters to compare with.
        assert found["weight"] == [rank, OTHERS if replicas else MASTERS], case
        assert found["master"] == [rank, MASTERS], case
