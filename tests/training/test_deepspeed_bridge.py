"""What Trestle reaches for inside DeepSpeed is where it was, and each configuration gives the optimizer class it was
written for.
"""

from __future__ import annotations

from importlib.metadata import version

import pytest

from tests.distributed.launch import run


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, object]]:
    result: dict[str, dict[str, object]] = run("tests.training.deepspeed_classes:inspect", 1, None, deadline=120)[0]
    return result


def test_version_is_the_one_that_the_bridge_was_written_against() -> None:
    assert version("deepspeed").startswith("0.19."), "read training/engine/deepspeed_bridge.py again before upgrading"


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("stage 1 fp32", "DeepSpeedZeroOptimizer"),
        ("stage 1 bf16", "BF16_Optimizer"),
        ("stage 1 bf16 offload", "DeepSpeedZeroOptimizer"),
        ("stage 2 fp32", "DeepSpeedZeroOptimizer"),
        ("stage 2 bf16", "DeepSpeedZeroOptimizer"),
        ("stage 3 fp32", "DeepSpeedZeroOptimizer_Stage3"),
        ("stage 3 bf16", "DeepSpeedZeroOptimizer_Stage3"),
    ],
)
def test_each_configuration_gives_its_optimizer(found: dict[str, dict[str, object]], case: str, expected: str) -> None:
    assert found[case]["class"] == expected


def test_every_private_name_is_there_and_gradients_are_found(found: dict[str, dict[str, object]]) -> None:
    for case, facts in found.items():
        assert facts["missing"] == [], case
        if case.startswith("stage 1"):
            assert facts["without_gradient"] == 0, case


def test_sums_of_parameters_that_take_no_part_in_a_step_are_zero(found: dict[str, dict[str, object]]) -> None:
    for case, facts in found.items():
        assert facts["stale"] is False, case


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(found: dict[str, dict[str, object]]) -> None:
    for case, facts in found.items():
        assert facts["skipped"] is True, case
        assert facts["changed"] is False, case
