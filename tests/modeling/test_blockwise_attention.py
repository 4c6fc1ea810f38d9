"""Attention in blocks on a CPU: exact to bf16's rounding, causal, and what the model really uses in bf16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from modeling import blockwise_attention
from modeling.blockwise_attention import blockwise_causal_attention
from tests.modeling.worlds import GPT2_LIKE, build, loss_and_gradients, sample, world_of_one

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(s: int, scale: float = 1.0) -> Tensors:
    """Query, key and value `[s, 2, 3, 16]` in bf16, scores `scale`² as wide as a unit normal's."""
    generator = torch.Generator().manual_seed(s)
    q, k, v = (torch.randn(s, 2, 3, 16, generator=generator) for _ in range(3))
    return (q * scale).bfloat16(), (k * scale).bfloat16(), v.bfloat16()


def by_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    out = F.scaled_dot_product_attention(*(x.permute(1, 2, 0, 3) for x in (q, k, v)), is_causal=True)
    return out.permute(2, 0, 1, 3).reshape(q.shape[0], q.shape[1], -1)


def results(attend, tensors: Tensors) -> list[torch.Tensor]:
    """Output and the three gradients, in fp64."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = attend(*leaves)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    out.backward(weights)
    return [out.detach().double(), *(x.grad.double() for x in leaves)]


@pytest.mark.parametrize("s", [2, 100, 128, 129, 300])
@pytest.mark.parametrize("scale", [1.0, 2.0])  # of q and k: scores of a normal's width, and four times as wide
def test_output_and_gradients_are_those_of_fp64_within_bf16s_rounding(s: int, scale: float) -> None:
    tensors = inputs(s, scale)
    exact = results(by_torch, tuple(x.double() for x in tensors))
    theirs, ours = results(by_torch, tensors), results(blockwise_causal_attention, tensors)
    for name, true, their, our in zip(("output", "query", "key", "value"), exact, theirs, ours, strict=True):
        # Scores are rounded to bf16, which torch's kernel does not do: wide ones cost up to 4 times its error.
        error, bound = float((our - true).norm()), float((their - true).norm())
        assert error <= max((2.0 if scale == 1.0 else 5.0) * bound, 4e-3 * float(true.norm())), name


def test_later_positions_change_nothing_before_them() -> None:
    q, k, v = inputs(300)
    before = blockwise_causal_attention(q, k, v)
    for x in (q, k, v):
        x[190:] = 7.0
    after = blockwise_causal_attention(q, k, v)
    assert torch.equal(before[:190], after[:190]) and not torch.equal(before[190:], after[190:])


def test_model_in_bf16_uses_it_and_compiles_it_into_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = blockwise_attention.blockwise_causal_attention

    def counted(*tensors: torch.Tensor) -> torch.Tensor:
        calls.append(tensors[0].shape)
        return original(*tensors)

    with world_of_one():
        tokens = sample(GPT2_LIKE)
        compiled, compiled_gradients = loss_and_gradients(build(GPT2_LIKE, precision="bf16", compile=True), tokens)
        monkeypatch.setattr(blockwise_attention, "blockwise_causal_attention", counted)
        eager, gradients = loss_and_gradients(build(GPT2_LIKE, precision="bf16"), tokens)
        assert len(calls) == GPT2_LIKE.num_layers
        monkeypatch.setattr(blockwise_attention, "takes", lambda *_: False)
        plain, _ = loss_and_gradients(build(GPT2_LIKE, precision="bf16"), tokens)
        assert len(calls) == GPT2_LIKE.num_layers
    assert compiled == pytest.approx(eager, abs=2e-3) and plain == pytest.approx(eager, abs=2e-3)
    for name, gradient in gradients.items():
        difference = (compiled_gradients[name].float() - gradient.float()).norm()
        assert float(difference) <= 3e-2 * float(gradient.float().norm()), name


def test_fp32_grouped_heads_and_long_sequences_go_to_torchs_kernel() -> None:
    q, k, _ = inputs(16)
    assert blockwise_attention.takes(q, k)
    assert not blockwise_attention.takes(q.float(), k.float())
    assert not blockwise_attention.takes(q, k[:, :, :1])
    assert not blockwise_attention.takes(q.expand(16, 2, 3, 16)[:1], k[:1])
    long = q[:1].expand(blockwise_attention.LONGEST + 1, 2, 3, 16)
    assert not blockwise_attention.takes(long, long)
