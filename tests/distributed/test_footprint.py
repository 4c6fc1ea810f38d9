"""The state that memory is planned from, and the coordinates and the traffic that a placement shows, are those of real
ranks, to the byte.
"""

from __future__ import annotations

from typing import Any

import pytest

from launcher.job import Job
from launcher.placement import Plan, Stage, plan_of
from modeling.registry import family
from tests.distributed.launch import run
from tests.distributed.steps import GLOBAL_BATCH, MICRO_BATCH, MODELS, SHAPE
from tests.launcher.plans import job_of
from training.footprint import StateBytes, state_bytes

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
    return [(one, plan_of(job_with(one)), [of_rank[i] for of_rank in by_rank]) for i, one in enumerate(CASES)]


def job_with(case: dict[str, Any]) -> Job:
    document = {
        "model": {"family": "gpt", **SHAPE, **MODELS[case["model"]]},
        "batch": {"global_batch_size": GLOBAL_BATCH, "micro_batch_size": MICRO_BATCH},
        "parallel": {**case["layout"], "zero_stage": case["zero_stage"]},
        "training": {"precision": case["precision"], "recompute": case["recompute"]},
    }
    return job_of(document, nodes=1, ranks_per_node=WORLD)


def stage_of(plan: Plan, rank: dict[str, Any]) -> Stage:
    return plan.stages[rank["place"][1]]


def test_ranks_stand_where_the_placement_puts_them(measured: Any) -> None:
    for _, plan, ranks in measured:
        shown = [[at.tensor, at.pipeline, at.data] for at in plan.ranks]
        assert [rank["place"] for rank in ranks] == shown


def state_of(case: dict[str, Any], rank: dict[str, Any]) -> StateBytes:
    """What a rank keeps from step to step; a placement shows a step's fullest moment, which is made of this."""
    recipe = job_with(case).recipe
    layout, number = recipe.parallel, rank["place"][1]
    footprint = family(recipe.model.family).footprint(recipe.model, layout, number, recipe.training.recompute)
    return state_bytes(footprint, layout, recipe.training.precision, layout.data_parallel(WORLD))


def test_weights_gradients_and_optimizer_take_the_bytes_that_are_planned_from(measured: Any) -> None:
    for case, _, ranks in measured:
        for rank in ranks:
            state = state_of(case, rank)
            assert (rank["weights"], rank["optimizer"]) == (state.weights, state.optimizer), case
            if case["zero_stage"] == 2 and case["precision"] == "fp32":
                # DeepSpeed keeps parameters whole that lie across two ranks' parts.
                assert state.gradients <= rank["gradients"] <= 1.2 * state.gradients
            else:
                assert rank["gradients"] == state.gradients, case


def test_ranks_send_what_is_shown(measured: Any) -> None:
    for case, plan, ranks in measured:
        for rank in ranks:
            sent, stage = sum(rank["sent"].values()), stage_of(plan, rank)
            # What fills groups up, and tensors too small to be counted, are the difference.
            assert sent == pytest.approx(sum(stage.sent.values()), rel=0.01), case
            assert (stage.inside, stage.across) == (pytest.approx(sum(stage.sent.values()), abs=2), 0)
