"""GELU in the form that compiled layers use is torch's own, forward and backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from modeling.gelu import _Logistic, gelu_tanh


def value_and_gradient(function, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = x.detach().requires_grad_()
    y = function(leaf)
    (gradient,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    return y.detach(), gradient


def test_the_form_by_the_logistic_is_gelu_to_fp32s_last_digits_also_far_out() -> None:
    x = torch.cat([torch.linspace(-12, 12, 4801), torch.tensor([-1e4, -60.0, 60.0, 1e4])])
    value, gradient = value_and_gradient(_Logistic.apply, x)
    exact, slope = value_and_gradient(lambda y: F.gelu(y, approximate="tanh"), x.double())
    assert torch.allclose(value.double(), exact, rtol=1e-5, atol=1e-6)
    assert torch.allclose(gradient.double(), slope, rtol=1e-5, atol=2e-6)


def test_in_bf16_it_is_rounded_once() -> None:
    x = torch.linspace(-6, 6, 1001).bfloat16()
    value, gradient = value_and_gradient(_Logistic.apply, x)
    exact, slope = value_and_gradient(lambda y: F.gelu(y, approximate="tanh"), x.double())
    for ours, true in ((value, exact), (gradient, slope)):
        assert ours.dtype == torch.bfloat16
        assert torch.all((ours.double() - true).abs() <= 2**-8 * true.abs() + 1e-6)


def test_layers_that_are_not_compiled_keep_torchs_kernel() -> None:
    x = torch.linspace(-4, 4, 101)
    assert torch.equal(gelu_tanh(x), F.gelu(x, approximate="tanh"))
