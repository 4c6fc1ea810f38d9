"""Every layout trains the same model: losses and gradient norms agree at every step, whatever is divided over what.

One launch per world size runs all of its layouts. Gradient norms are compared as well as losses because clipping and
Adam hide gradients
that are wrong by a factor.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.launch import run

STEPS, BF16_STEPS = 12, 6
LAYOUTS: dict[int, list[dict[str, Any]]] = {
    1: [{}],
    2: [
        {},
        {"tensor": 2},
        {"tensor": 2, "sequence": True},
        {"pipeline": 2},
        {"pipeline": 2, "virtual_pipeline": 2},
    ],
    4: [
        {"tensor": 2, "pipeline": 2},
        {"tensor": 2},
        {"tensor": 2, "sequence": True},
        {"pipeline": 2},
    ],
}
SINGLE_DEADLINE = 400.0
"""Seconds for the curves of one rank, which the first test to ask for them waits for."""
pytestmark = pytest.mark.timeout(SINGLE_DEADLINE + 60)
TOLERANCE = {"fp32": (1e-4, 1e-4), "bf16": (1e-3, 1e-2)}  # relative, of the loss and of the gradient norm


def cases(world_size: int) -> list[dict[str, Any]]:
    """All legal combinations: stages 2 and 3 without pipelines, stage 0 in fp32."""
    found = []
    for model in ("tied", "untied", "llama"):
        for precision in ("fp32", "bf16"):
            for layout in LAYOUTS[world_size]:
                for stage in range(4):
                    if (stage == 0 and precision == "bf16") or (stage >= 2 and layout.get("pipeline", 1) > 1):
                        continue
                    found.append(
                        {
                            "model": model,
                            "layout": layout,
                            "zero_stage": stage,
                            "precision": precision,
                            "steps": STEPS if precision == "fp32" else BF16_STEPS,
                        }
                    )
    return found


Curve = dict[str, Any]


@pytest.fixture(scope="module")
def single() -> list[Curve]:
    """All stages on one rank."""
    return run("tests.distributed.steps:train_cases", 1, cases(1), deadline=SINGLE_DEADLINE)[0]


@pytest.fixture(scope="module")
def reference(single: list[Curve]) -> dict[tuple[str, str], Curve]:
    """One rank: stage 0 in fp32, stage 1 in bf16."""
    chosen: dict[tuple[str, str], Curve] = {}
    for curve in single:
        case = curve["case"]
        chosen.setdefault((case["model"], case["precision"]), curve)
    return chosen


def worst(curve: Curve, against: Curve, key: str) -> float:
    """Largest relative difference over the steps."""
    return max(abs(a - b) / abs(b) for a, b in zip(curve[key], against[key], strict=True))


def disagreements(curves: list[Curve], reference: dict[tuple[str, str], Curve]) -> list[str]:
    """The cases that leave the tolerance, with how far."""
    found = []
    for curve in curves:
        case = curve["case"]
        one = reference[case["model"], case["precision"]]
        loss, norm = worst(curve, one, "loss"), worst(curve, one, "grad_norm")
        allowed = TOLERANCE[case["precision"]]
        if not (loss <= allowed[0] and norm <= allowed[1]):
            found.append(f"{case}: loss off by {loss:.2e}, gradient norm by {norm:.2e}")
    return found


def test_every_stage_on_one_rank_gives_the_same_curve(
    single: list[Curve], reference: dict[tuple[str, str], Curve]
) -> None:
    assert len(single) == len(cases(1))
    assert disagreements(single, reference) == []


@pytest.mark.timeout(SINGLE_DEADLINE + 850 + 60)
@pytest.mark.parametrize("world_size", [2, 4])
def test_every_layout_and_stage_gives_the_curve_of_one_rank(
    world_size: int, reference: dict[tuple[str, str], Curve]
) -> None:
    curves = run("tests.distributed.steps:train_cases", world_size, cases(world_size), deadline=850)[0]
    assert len(curves) == len(cases(world_size))
    assert disagreements(curves, reference) == []


def test_bf16_curve_stays_with_the_fp32_curve(reference: dict[tuple[str, str], Curve]) -> None:
    for model in ("tied", "untied", "llama"):
        fp32 = {"loss": reference[model, "fp32"]["loss"][:BF16_STEPS]}
        assert worst(reference[model, "bf16"], fp32, "loss") < 1e-3


@pytest.mark.timeout(SINGLE_DEADLINE + 250 + 60)
def test_offload_and_recomputation_change_nothing(reference: dict[tuple[str, str], Curve]) -> None:
    variants: list[dict[str, Any]] = [
        *({"zero_stage": stage, "offload": True, "precision": p} for stage in (1, 2) for p in ("fp32", "bf16")),
        *({"zero_stage": stage, "recompute": r} for stage in (1, 3) for r in ("selective", "full")),
        *(
            {"zero_stage": 1, "offload": True, "precision": p, "layout": {"tensor": 2, "sequence": True}}
            for p in ("fp32", "bf16")
        ),
        {"zero_stage": 1, "recompute": "full", "layout": {"pipeline": 2}},
        {"zero_stage": 1, "recompute": "selective", "layout": {"tensor": 2, "sequence": True}},
    ]
    common = {"model": "tied", "precision": "fp32", "layout": {}, "steps": 4}
    planned = [common | one for one in variants]
    # Fresh: of all layouts' launches the one whose ranks would find it out if something were sent in a set's order.
    curves = run("tests.distributed.steps:train_cases", 2, planned, deadline=250, fresh=True)[0]
    short = {key: {"loss": one["loss"][:4], "grad_norm": one["grad_norm"][:4]} for key, one in reference.items()}
    assert len(curves) == len(variants)
    assert disagreements(curves, short) == []


PLANTED = {
    "norm gradients not summed under sequence parallelism": {"tensor": 2, "sequence": True},
    "tied embedding gradients not summed": {"pipeline": 2},
    "gradients divided twice": {},
}


@pytest.mark.timeout(SINGLE_DEADLINE + 250 + 60)
def test_planted_errors_are_found(reference: dict[tuple[str, str], Curve]) -> None:
    """Each error, planted in each engine that could have it, must leave the tolerance: else the test above proves
    nothing.
    """
    planted = [
        {
            "model": "tied",
            "layout": layout,
            "zero_stage": stage,
            "precision": "fp32",
            "steps": 3,
            "plant": error,
        }
        for error, layout in PLANTED.items()
        for stage in ((0, 1, 2, 3) if "sequence" in layout else (0, 1))
    ]
    curves = run("tests.distributed.planted:train_with_errors", 2, planted, deadline=250)[0]
    one = reference["tied", "fp32"]
    short = {("tied", "fp32"): {key: one[key][:3] for key in ("loss", "grad_norm")}}
    found = disagreements(curves, short)
    assert len(found) == len(planted), f"found {found}"
