"""The tiled contrastive losses in one process: any size, tile and scale, and input of every kind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from math import log

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling.contrastive import clip_loss, contrastive, nt_xent_loss, sigmoid_loss
from modeling.contrastive.coupled import Coupled
from modeling.errors import ModelError
from tests.modeling.contrastive_ranks import LOSSES, Case, compute, values
from tests.modeling.contrastive_reference import BIAS, errors, pairs, reference

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
every_loss = pytest.mark.parametrize("loss", sorted(LOSSES))
AT_THE_END = Case("clip", [], log(100.0), 0.05, 16, "float32")


@settings(max_examples=60, deadline=None)
@given(
    loss=st.sampled_from(sorted(LOSSES)),
    count=st.integers(1, 40),
    features=st.integers(1, 16),
    tile=st.integers(1, 50),
    scale=st.floats(0.01, 100.0),
    spread=st.sampled_from([0.0, 0.05, 0.5, 2.0]),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 1000),
)
def test_any_shape_tile_and_scale_gives_the_reference(
    loss: str, count: int, features: int, tile: int, scale: float, spread: float, dtype: str, seed: int
) -> None:
    first, second = pairs(count, features, spread=spread, seed=seed)
    case = Case(loss, [count], log(scale), spread, tile, dtype)
    found, expected = values(compute(case, first, second, None)), reference(loss, first, second, log(scale))
    # Few features make copies, among which gradients cancel to nothing: then what cancels is the measure. No weight of
    # a candidate exceeds its loss.
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    typical = float(expected["sample_losses"].max()) * max(scale, 1.0)
    for name, value in expected.items():
        largest = max(float(value.abs().max()), typical / (count if value.ndim == 2 else 1), 1e-37)
        assert found[name].dtype == getattr(torch, dtype)
        assert (found[name].double() - value).abs().max() <= tolerance * largest, name


@every_loss
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("count", "features"), [(200, 48), (300, 96)])  # similarities in fp64, and in fp32
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize(("scale", "spread"), [(100.0, 0.05), (100.0, 1.0), (100.0, 3.0), (1 / 0.07, 1.0)])
def test_gradients_hold_relative_to_the_largest(
    loss: str, device: str, count: int, features: int, dtype: str, tolerance: float, scale: float, spread: float
) -> None:
    first, second = pairs(count, features, spread=spread)
    case = Case(loss, [count], log(scale), spread, 64, dtype)
    found = values(compute(case, first.to(device), second.to(device), None))
    deviations = errors({name: x.cpu() for name, x in found.items()}, reference(loss, first, second, log(scale)))
    assert max(deviations.values()) <= tolerance, deviations


@every_loss
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pairs_that_point_apart_and_copies_do_no_harm(loss: str, dtype: str) -> None:
    # Aligned similarities from -100 to 100: more than one exponential reaches in fp32.
    first, second = pairs(30, 8, spread=0.3)
    second[5], second[6], second[7:9] = -first[5], first[7], second[9]
    first[20] = first[21]
    case = Case(loss, [30], log(100.0), 0.3, 7, dtype)
    deviations = errors(values(compute(case, first, second, None)), reference(loss, first, second, log(100.0)))
    assert max(deviations.values()) <= (1e-5 if dtype == "float32" else 1e-12), deviations


@every_loss
def test_order_of_the_pairs_does_not_matter(loss: str) -> None:
    first, second = pairs(50, 8)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    case = Case(loss, [50], log(20.0), 1.0, 16, "float64")
    straight, mixed = (values(compute(case, first[o], second[o], None)) for o in (torch.arange(50), order))
    put_back = {name: value if value.ndim == 0 else value[order.argsort()] for name, value in mixed.items()}
    assert max(errors(put_back, straight).values()) < 1e-13


@pytest.mark.parametrize("loss_function", [clip_loss, nt_xent_loss])
def test_one_pair_has_no_candidates_and_teaches_nothing(loss_function: Callable[..., Coupled]) -> None:
    found = values(loss_function(*pairs(1, 4), log(100.0)))
    assert all(not value.any() for value in found.values())


@every_loss
def test_repeats_to_the_bit(loss: str) -> None:
    case = replace(AT_THE_END, loss=loss)
    once, twice = (values(compute(case, *pairs(70, 8), None)) for _ in range(2))
    assert all(torch.equal(once[name], twice[name]) for name in once)


@every_loss
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_computed_in_fp32(loss: str, dtype: str) -> None:
    first, second = (x.to(getattr(torch, dtype)) for x in pairs(40, 8, spread=0.2))
    case = Case(loss, [40], log(50.0), 0.2, 16, dtype)
    found = values(compute(case, first, second, None))
    assert {value.dtype for value in found.values()} == {torch.float32}
    deviations = errors(found, reference(loss, first, second, log(50.0)))
    assert max(deviations.values()) <= 1e-5, deviations


@every_loss
def test_autocast_and_a_lower_matmul_precision_change_nothing(loss: str) -> None:
    case = replace(AT_THE_END, loss=loss)
    plain = values(compute(case, *pairs(64, 16), None))
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            surrounded = values(compute(case, *pairs(64, 16), None))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(torch.equal(plain[name], surrounded[name]) for name in plain)


@every_loss
def test_wrapper_hands_the_gradients_to_autograd(loss: str) -> None:
    first, second = (x.bfloat16().requires_grad_() for x in pairs(20, 6))
    scalars = [torch.tensor(3.0, requires_grad=True), torch.tensor([BIAS], requires_grad=True)]
    scalars = scalars if loss == "sigmoid" else scalars[:1]
    expected = LOSSES[loss](first, second, *scalars, tile=8)
    value = contrastive(LOSSES[loss], first, second, *scalars, tile=8)
    assert torch.equal(value, expected.loss)
    (3 * value).backward()
    for x, gradient in ((first, expected.first_gradient), (second, expected.second_gradient)):
        assert x.grad is not None and x.grad.dtype == torch.bfloat16
        assert torch.allclose(x.grad.float(), 3 * gradient, rtol=1e-2, atol=1e-6)
    for scalar, slope in zip(scalars, (expected.log_scale_gradient, expected.bias_gradient), strict=False):
        assert scalar.grad is not None and slope is not None
        assert scalar.grad.item() == pytest.approx(3 * slope.item(), rel=1e-5)


@every_loss
def test_features_that_are_not_numbers_give_a_loss_that_is_none(loss: str) -> None:
    first, second = pairs(10, 4)
    first[3, 1] = torch.nan
    assert compute(replace(AT_THE_END, loss=loss), first, second, None).loss.isnan()


@pytest.mark.parametrize(
    ("first", "second", "tile", "says"),
    [
        (torch.ones(3, 4), torch.ones(3, 5), None, r"\[3, 4\] and \[3, 5\]"),
        (torch.ones(4), torch.ones(4), None, r"\[n, d\]"),
        (torch.ones(3, 4), torch.ones(3, 4).double(), None, "float32 on cpu and torch.float64"),
        (torch.ones(3, 4).long(), torch.ones(3, 4).long(), None, "floating"),
        (torch.ones(3, 4), torch.ones(3, 4), 0, "at least one row"),
        (torch.ones(0, 4), torch.ones(0, 4), None, "at least one pair"),
    ],
)
def test_what_are_no_pairs_is_refused(first: torch.Tensor, second: torch.Tensor, tile: int | None, says: str) -> None:
    for loss_function, bias in ((clip_loss, ()), (nt_xent_loss, ()), (sigmoid_loss, (BIAS,))):
        with pytest.raises(ModelError, match=says):
            loss_function(first, second, 1.0, *bias, tile=tile)


@every_loss
def test_memory_is_that_of_the_gradients_and_a_few_tiles(loss: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.benchmarks.contrastive",
            "--peak-of",
            loss,
            "--pairs",
            "8192",
            "--features",
            "32",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    # Gradients 2 MiB, tiles 12 MiB, a few numbers a pair; one matrix of similarities would be 256 MiB.
    assert float(done.stdout.split()[-1]) < 30


def test_a_loss_without_digits_in_dense_form_has_them_here() -> None:
    first, second = pairs(200, 64, spread=0.05)
    labels = torch.arange(200)
    assert F.cross_entropy(100.0 * first.double() @ second.double().t(), labels) < 1e-15
    deviations = errors(values(compute(AT_THE_END, first, second, None)), reference("clip", first, second, log(100.0)))
    assert max(deviations.values()) <= 1e-5, deviations
