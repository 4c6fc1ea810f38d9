"""Attention and norms against a few plain lines of mathematics."""

from __future__ import annotations

import math

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType

from modeling.attention import CausalAttention
from modeling.execution import Execution
from modeling.gpt.network import transformer_config
from modeling.megatron_bridge import prepare, seed_dropout
from modeling.norms import LayerNorm, RMSNorm
from tests.modeling.worlds import GPT2_LIKE


@pytest.fixture(autouse=True)
def _bridge() -> None:
    prepare()


def attention(band: int | None = None, dropout: float = 0.0) -> CausalAttention:
    config = transformer_config(GPT2_LIKE, Execution())
    config.attention_dropout = dropout
    return CausalAttention(config, layer_number=2, band_of_layer=(None, band))


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, band: int | None) -> torch.Tensor:
    """softmax(qk / sqrt(d)) v over what each position sees, in loops; `[s, b, heads, d]`, the last s of t positions."""
    (s, b, heads, d), (t, _, groups, _) = q.shape, k.shape
    out = torch.zeros(s, b, heads, d, dtype=q.dtype)
    for i in range(s):
        now = t - s + i
        first = 0 if band is None else max(0, now - band + 1)
        for head in range(heads):
            group = head // (heads // groups)
            scores = (q[i, :, None, head] * k[first : now + 1, :, group].transpose(0, 1)).sum(-1) / math.sqrt(d)
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            out[i, :, head] = (weights[..., None] * v[first : now + 1, :, group].transpose(0, 1)).sum(1)
    return out.reshape(s, b, heads * d)


def inputs(s: int = 9, t: int = 9, groups: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((s, 4), (t, groups), (t, groups))
    q, k, v = (torch.randn(n, 2, heads, 8, generator=generator, dtype=torch.float64) for n, heads in sizes)
    return q, k, v


@pytest.mark.parametrize("band", [None, 1, 4, 9, 20])
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_attention_is_a_masked_softmax(band: int | None, groups: int) -> None:
    q, k, v = inputs(groups=groups)
    out = attention(band)(q, k, v, attn_mask_type=AttnMaskType.causal)
    torch.testing.assert_close(out, plain_attention(q, k, v, band), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("band", [None, 4])
def test_one_query_behind_a_cache_sees_what_the_last_position_sees(band: int | None) -> None:
    q, k, v = inputs(s=1, groups=2)
    out = attention(band)(q, k, v, attn_mask_type=AttnMaskType.no_mask)
    torch.testing.assert_close(out, plain_attention(q, k, v, band), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("band", [None, 4])
def test_dropout_acts_in_training_only(band: int | None) -> None:
    q, k, v = inputs()
    module = attention(band, dropout=0.5)
    expected = plain_attention(q, k, v, band)
    torch.testing.assert_close(
        module.eval()(q, k, v, attn_mask_type=AttnMaskType.causal), expected, rtol=1e-10, atol=1e-12
    )
    seed_dropout(1, 0)
    module.train()
    first, second = (module(q, k, v, attn_mask_type=AttnMaskType.causal) for _ in range(2))
    assert not torch.allclose(first, expected) and not torch.equal(first, second)
    seed_dropout(1, 0)
    assert torch.equal(first, module(q, k, v, attn_mask_type=AttnMaskType.causal))
    # Unbiased: position 0 sees itself alone, so its output is its value or nothing, scaled by 1 / (1 - 0.5).
    values = v[0].reshape(2, 32)
    kept = first[0].view(2, 4, 8)
    for sample in range(2):
        for head in range(4):
            part, value = kept[sample, head], values[sample].view(4, 8)[head]
            assert torch.allclose(part, 2 * value) or not part.any()


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
def test_norms_follow_their_definitions(norm: type[torch.nn.Module]) -> None:
    config = transformer_config(GPT2_LIKE, Execution())
    module = norm(config, 32, eps=1e-3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(32, generator=generator))
    x = 3 + 2 * torch.randn(5, 2, 32, generator=generator)
    if norm is LayerNorm:
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        expected = (x - mean) / torch.sqrt(variance + 1e-3) * module.weight + module.bias
    else:
        expected = x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-3) * module.weight
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)


def test_norms_are_marked_for_sequence_parallelism_as_the_config_says() -> None:
    config = transformer_config(GPT2_LIKE, Execution())
    for sequence in (False, True):
        config.sequence_parallel = sequence
        for norm in (LayerNorm, RMSNorm):
            assert [p.sequence_parallel for p in norm(config, 8).parameters()] == [sequence] * (
                2 if norm is LayerNorm else 1
            )
