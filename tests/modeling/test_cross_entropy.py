"""The fused output projection and cross-entropy against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from modeling.cross_entropy import _losses_and_errors, linear_cross_entropy


def both(
    tokens: int,
    dtype: torch.dtype,
    *,
    vocab_size: int = 300,
    rows: int = 384,
    h: int = 16,
    scale: float = 1.0,
    compiled: bool = False,
) -> list[torch.Tensor]:
    """[loss, hidden's gradient, weight's gradient] of ours, then of torch's in fp64."""
    generator = torch.Generator().manual_seed(3)
    hidden = (scale * torch.randn(tokens, h, generator=generator)).to(dtype)
    weight = torch.randn(rows, h, generator=generator).to(dtype)
    labels = torch.randint(vocab_size, (tokens,), generator=generator)
    factors = torch.rand(tokens, generator=generator)  # each token's loss has a weight of its own, as under masks
    results: list[torch.Tensor] = []
    for ours in (True, False):
        x = hidden.clone().to(dtype if ours else torch.float64).requires_grad_()
        w = weight.clone().to(dtype if ours else torch.float64).requires_grad_()
        if ours:
            losses = linear_cross_entropy(x, w, labels, vocab_size=vocab_size, compiled=compiled)
            assert losses.dtype == torch.float32
        else:
            losses = F.cross_entropy(x @ w[:vocab_size].t(), labels, reduction="none")
        (losses * factors.to(losses.dtype)).sum().backward()
        assert x.grad is not None and w.grad is not None
        results += [losses.detach().double(), x.grad.double(), w.grad.double()]
    return results


@pytest.mark.parametrize("tokens", [1, 255, 256, 257, 700])
def test_fp32_loss_and_gradients_are_torchs(tokens: int) -> None:
    loss, hidden, weight, loss_, hidden_, weight_ = both(tokens, torch.float32)
    for ours, theirs in ((loss, loss_), (hidden, hidden_), (weight, weight_)):
        assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


@pytest.mark.parametrize("compiled", [False, True])
def test_bf16_loss_and_gradients_are_torchs_within_the_dtypes_rounding(compiled: bool) -> None:
    """Two sizes of chunks, so that what is compiled has two variants."""
    loss, hidden, weight, loss_, hidden_, weight_ = both(600, torch.bfloat16, compiled=compiled)
    # bf16 keeps 8 bits: logits below 32 (these deviate by 4) are off by up to 2^-4, the label's and the largest alike.
    assert (loss - loss_).abs().max() < 2**-3
    for ours, theirs in ((hidden, hidden_), (weight, weight_)):
        assert (ours - theirs).norm() / theirs.norm() < 2e-2


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_what_compiled_models_do_to_logits_is_the_same_arithmetic(scale: float) -> None:
    generator = torch.Generator().manual_seed(4)
    logits, labels = scale * torch.randn(64, 300, generator=generator), torch.randint(300, (64,), generator=generator)
    errors = torch.full_like(logits, torch.nan)
    losses = _losses_and_errors(logits, labels, errors)
    exact = logits.double().requires_grad_()
    losses_ = F.cross_entropy(exact, labels, reduction="none")
    losses_.sum().backward()
    assert exact.grad is not None
    assert (losses.double() - losses_).abs().max() <= 1e-6 * losses_.abs().max()
    assert (errors.double() - exact.grad).abs().max() <= 2e-6


def test_padding_rows_take_no_part_and_get_no_gradient() -> None:
    weight = torch.zeros(128, 8)
    weight[100:] = 50.0  # would be nearly all of the softmax
    weight.requires_grad_()
    losses = linear_cross_entropy(torch.ones(4, 8), weight, torch.tensor([0, 1, 2, 99]), vocab_size=100)
    assert torch.allclose(losses, torch.log(torch.tensor(100.0)).expand(4))
    losses.sum().backward()
    assert weight.grad is not None
    assert weight.grad[:100].any() and not weight.grad[100:].any()


@pytest.mark.parametrize("vocab_size", [297, 304, 383])
def test_a_vocabulary_that_ends_anywhere_in_its_padding_has_torchs_loss_and_gradients(vocab_size: int) -> None:
    loss, hidden, weight, loss_, hidden_, weight_ = both(300, torch.float32, vocab_size=vocab_size)
    for ours, theirs in ((loss, loss_), (hidden, hidden_), (weight, weight_)):
        assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()
    assert not weight[vocab_size:].any()


def test_large_logits_do_not_overflow() -> None:
    loss, hidden, _, loss_, hidden_, _ = both(10, torch.float32, scale=1e4)
    assert loss.isfinite().all()
    assert (loss - loss_).abs().max() <= 1e-6 * loss_.abs().max()
    assert (hidden - hidden_).abs().max() <= 1e-5 * hidden_.abs().max()


def test_a_second_micro_batch_in_flight_does_not_disturb_the_first() -> None:
    weight = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))
    inputs = [torch.randn(40, 8, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in (1, 2)]
    labels = torch.arange(40)
    alone = []
    for x in inputs:
        linear_cross_entropy(x, weight, labels, vocab_size=128).sum().backward()
        assert x.grad is not None
        alone.append(x.grad.clone())
        x.grad = None
    losses = [linear_cross_entropy(x, weight, labels, vocab_size=128).sum() for x in inputs]
    for x, loss, expected in zip(inputs, losses, alone, strict=True):
        loss.backward()
        assert torch.equal(x.grad, expected)  # type: ignore[arg-type]


def test_without_gradients_it_keeps_nothing() -> None:
    x, weight, labels = torch.randn(10, 8), torch.randn(128, 8, requires_grad=True), torch.arange(10)
    with torch.no_grad():
        evaluated = linear_cross_entropy(x, weight, labels, vocab_size=128)
    assert evaluated.grad_fn is None
    assert torch.equal(evaluated, linear_cross_entropy(x, weight, labels, vocab_size=128).detach())
