"""What the contrastive losses are held against is right itself: torch's dense losses, and mpmath where those fail."""

from __future__ import annotations

from math import log
from typing import Any

import mpmath
import pytest
import torch
import torch.nn.functional as F

from tests.modeling.contrastive_ranks import LOSSES, Case, compute, values
from tests.modeling.contrastive_reference import BIAS, Values, errors, pairs, reference


def dense(loss: str, first: torch.Tensor, second: torch.Tensor, log_scale: float) -> Values:
    """The losses as textbooks have them, in fp64: good while they are not small."""
    a, b = (x.double().clone().requires_grad_() for x in (first, second))
    t = torch.tensor(log_scale, dtype=torch.float64, requires_grad=True)
    count = len(a)
    labels = torch.arange(count)
    if loss == "clip":
        s = t.exp() * a @ b.t()
        value = 0.5 * (F.cross_entropy(s, labels) + F.cross_entropy(s.t(), labels))
    elif loss == "nt_xent":
        items = torch.cat([a, b])
        s = (t.exp() * items @ items.t()).masked_fill(torch.eye(2 * count, dtype=torch.bool), -torch.inf)
        value = F.cross_entropy(s, torch.cat([labels + count, labels]))
    else:
        value = -F.logsigmoid((2 * torch.eye(count) - 1) * (t.exp() * a @ b.t() + BIAS)).sum() / count
    value.backward()
    assert a.grad is not None and b.grad is not None and t.grad is not None
    return {
        "loss": value.detach(),
        "first_gradient": a.grad,
        "second_gradient": b.grad,
        "log_scale_gradient": t.grad,
    }


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_reference_is_the_dense_loss_at_small_scales(loss: str, scale: float) -> None:
    first, second = pairs(40, 16)
    expected = dense(loss, first, second, log(scale))
    found = reference(loss, first, second, log(scale))
    deviations = errors({name: found[name] for name in expected}, expected)
    assert max(deviations.values()) < 1e-12, deviations


def exact(loss: str, first: torch.Tensor, second: torch.Tensor, log_scale: float) -> Values:
    """By mpmath in 120 digits: the textbook's formula, and central differences of it."""
    with mpmath.workdps(120):
        count, width = first.shape
        point = [mpmath.mpf(x) for x in torch.cat([first.view(-1), second.view(-1)]).double().tolist()]
        point += [mpmath.mpf(log_scale), mpmath.mpf(BIAS)]

        def value(at: list[Any]) -> Any:
            items = [at[i * width : (i + 1) * width] for i in range(2 * count)]
            scale, bias = mpmath.exp(at[-2]), at[-1]

            def s(i: int, j: int) -> Any:
                return scale * mpmath.fdot(items[i], items[j])

            total = mpmath.mpf(0)
            for i in range(2 * count if loss != "sigmoid" else count):
                partner = (i + count) % (2 * count)
                if loss == "sigmoid":
                    for j in range(count):
                        sign = -1 if i == j else 1
                        total += 2 * mpmath.log1p(mpmath.exp(sign * (s(i, j + count) + bias)))
                    continue
                others = range(2 * count) if loss == "nt_xent" else range(count)
                if loss == "clip" and i < count:
                    others = range(count, 2 * count)
                total += mpmath.log1p(sum(mpmath.exp(s(i, j) - s(i, partner)) for j in others if j not in (i, partner)))
            return total / (2 * count)

        step = mpmath.mpf(10) ** -30  # the error of a central difference is its square
        slopes = []
        for k in range(len(point)):
            ahead, behind = (value([*point[:k], point[k] + sign * step, *point[k + 1 :]]) for sign in (1, -1))
            slopes.append(float((ahead - behind) / (2 * step)))
        gradients = torch.tensor(slopes[:-2], dtype=torch.float64).view(2, count, width)
        found = {
            "loss": torch.tensor(float(value(point)), dtype=torch.float64),
            "first_gradient": gradients[0],
            "second_gradient": gradients[1],
            "log_scale_gradient": torch.tensor(slopes[-2], dtype=torch.float64),
        }
        if loss == "sigmoid":
            found["bias_gradient"] = torch.tensor(slopes[-1], dtype=torch.float64)
        return found


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_reference_and_the_tiled_loss_are_exact_at_scale_100(loss: str, spread: float) -> None:
    case = Case(loss, [4], log(100.0), spread, 3, "float64")
    first, second = pairs(4, 5, spread=spread, seed=2)
    expected = exact(loss, first, second, case.log_scale)
    if spread < 1 and loss != "sigmoid":
        assert expected["loss"] < 1e-15  # a dense cross-entropy in fp64 has nothing left here
    for found in (reference(loss, first, second, case.log_scale), values(compute(case, first, second, None))):
        deviations = errors({name: found[name] for name in expected}, expected)
        assert max(deviations.values()) < 1e-12, deviations
