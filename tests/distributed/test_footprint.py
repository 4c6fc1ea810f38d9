"""The memory, the coordinates and the traffic that a placement shows are those of real ranks, to the byte."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.placement import Plan, Stage, plan_of
from tests.distributed.launch import run
from tests.distributed.steps import GLOBAL_BATCH, MICRO_BATCH, MODELS, SHAPE
from tests.launcher.plans import job_of

WORLD = 2


def case(model: str, layout: dict[str, Any], stage: int, precision: str, recompute: str = "none") -> dict[str, Any]:
    return {"model": model, "layout": layout, "zero_stage": stage, "precision": precision, "recompute": recompute}


CASES = [
    *(case("tied", {}, stage, "fp32") for stage in range(4)),
    *(case("llama", {}, stage, "bf16") for stage in range(1, 4)),
    *(
        case(model, layout, 1, "bf16", recompute)
        for model, recompute in (("tied", "selective"), ("llama", "none"), ("llama", "full"))
        for layout in (
            {"tensor": 2},
            {"tensor": 2, "sequence": True},
            {"pipeline": 2},
            {"pipeline": 2, "virtual_pipeline": 2},
        )
    ),
]


@pytest.fixture(scope="module")
def measured() -> list[tuple[dict[str, Any], Plan, list[dict[str, Any]]]]:
    """(case, what the placement says, what each rank has measured)."""
    # Fresh: what is sent is counted by functions that must be in place before Megatron Core takes them.
    by_rank = run("tests.distributed.footprints:measure_cases", WORLD, CASES, deadline=240, fresh=True)
    return [(one, planned(one), [of_rank[i] for of_rank in by_rank]) for i, one in enumerate(CASES)]


def planned(case: dict[str, Any]) -> Plan:
    document = {
        "model": {"family": "gpt", **SHAPE, **MODELS[case["model"]]},
        "batch": {"global_batch_size": GLOBAL_BATCH, "micro_batch_size": MICRO_BATCH},
        "parallel": {**case["layout"], "zero_stage": case["zero_stage"]},
        "training": {"precision": case["precision"], "recompute": case["recompute"]},
    }
    return plan_of(job_of(document, nodes=1, ranks_per_node=WORLD))


def stage_of(plan: Plan, rank: dict[str, Any]) -> Stage:
    return plan.stages[rank["place"][1]]


@pytest.mark.timeout(280)
def test_ranks_stand_where_the_placement_puts_them(measured: Any) -> None:
    for _, plan, ranks in measured:
        shown = [[at.tensor, at.pipeline, at.data] for at in plan.ranks]
        assert [rank["place"] for rank in ranks] == shown


def test_weights_gradients_and_optimizer_take_the_bytes_that_are_shown(measured: Any) -> None:
    for case, plan, ranks in measured:
        for rank in ranks:
            stage = stage_of(plan, rank)
            assert (rank["weights"], rank["optimizer"]) == (stage.weights, stage.optimizer), case
            if case["zero_stage"] == 2 and case["precision"] == "fp32":
                # DeepSpeed keeps parameters whole that lie across two ranks' parts.
                assert stage.gradients <= rank["gradients"] <= 1.2 * stage.gradients
            else:
                assert rank["gradients"] == stage.gradients, case


def test_ranks_send_what_is_shown(measured: Any) -> None:
    for case, plan, ranks in measured:
        for rank in ranks:
            sent, stage = sum(rank["sent"].values()), stage_of(plan, rank)
            # What fills groups up, and tensors too small to be counted, are the difference.
            assert sent == pytest.approx(sum(stage.sent.values()), rel=0.01), case
            assert (stage.inside, stage.across) == (pytest.approx(sum(stage.sent.values()), abs=2), 0)
