"""Contrastive losses the plain way: every similarity at once, fp64, gradients by autograd.

The aligned pair is left out of the sums here too: a dense cross-entropy is itself wrong in fp64 once its loss is small.
`test_contrastive_reference` holds this against torch's cross-entropy and against mpmath.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

BIAS = -7.3
Values = dict[str, torch.Tensor]


def pairs(count: int, features: int, *, spread: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised `[count, features]` fp32, the second ones `spread` away from the first: 0.05 is a trained model's."""
    generator = torch.Generator().manual_seed(seed)
    first = F.normalize(torch.randn(count, features, generator=generator))
    noise = torch.randn(count, features, generator=generator) / features**0.5
    return first, F.normalize(first + spread * noise)


def reference(loss: str, first: torch.Tensor, second: torch.Tensor, log_scale: float, bias: float = BIAS) -> Values:
    """What `Coupled` has, of all pairs at once."""
    a, b = (x.double().clone().requires_grad_() for x in (first, second))
    t = torch.tensor(log_scale, dtype=torch.float64, requires_grad=True)
    offset = torch.tensor(bias, dtype=torch.float64, requires_grad=True)
    losses = {"clip": _clip, "nt_xent": _nt_xent, "sigmoid": _sigmoid}[loss](a, b, t.exp(), offset)
    value = losses.mean()
    value.backward()
    assert a.grad is not None and b.grad is not None and t.grad is not None
    found = {
        "loss": value.detach(),
        "sample_losses": losses.detach(),
        "first_gradient": a.grad,
        "second_gradient": b.grad,
        "log_scale_gradient": t.grad,
    }
    return found if offset.grad is None else found | {"bias_gradient": offset.grad}


def _softplus(x: torch.Tensor) -> torch.Tensor:
    return F.softplus(x, threshold=40.0)


def _others(similarities: torch.Tensor, aligned: torch.Tensor) -> torch.Tensor:
    """Each row's candidates but i itself, relative to its aligned pair."""
    own = torch.eye(len(similarities), dtype=torch.bool)
    return (similarities - aligned[:, None]).masked_fill(own, -torch.inf)


def _cross_entropies(candidates: torch.Tensor) -> torch.Tensor:
    none = candidates.isneginf().all(1)  # a batch of one pair: autograd through logsumexp would give NaN
    return torch.where(none, 0.0, _softplus(candidates.masked_fill(none[:, None], 0.0).logsumexp(1)))


def _clip(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    similarities = scale * a @ b.t()
    aligned = similarities.diagonal()
    rows, columns = (_cross_entropies(_others(s, aligned)) for s in (similarities, similarities.t()))
    return 0.5 * (rows + columns)


def _nt_xent(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    across = scale * a @ b.t()
    aligned = across.diagonal()
    firsts, seconds = (
        _cross_entropies(torch.cat([_others(s, aligned), _others(scale * x @ x.t(), aligned)], 1))
        for s, x in ((across, a), (across.t(), b))
    )
    return 0.5 * (firsts + seconds)


def _sigmoid(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    signs = 1 - 2 * torch.eye(len(a), dtype=torch.float64)  # -1 for the aligned pairs
    return _softplus(signs * (scale * a @ b.t() + bias)).sum(1)


def errors(found: Values, expected: Values) -> dict[str, float]:
    """By name, the largest deviation relative to the largest value; exact zeros must be met exactly."""
    assert sorted(found) == sorted(expected)
    deviations = {}
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        away, largest = (float(x.abs().max()) if x.numel() else 0.0 for x in (found[name].double() - value, value))
        deviations[name] = away / largest if largest else away
    return deviations
