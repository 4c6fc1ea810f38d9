"""No loss depends on the keys' biases, but where positions are rotary: `depended_on` beside computed gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from modeling.gpt.config import GPTConfig
from tests.distributed.key_biases import depended_on
from tests.modeling.worlds import GPT2_LIKE, build, loss_and_gradients, perturb, sample, world_of_one

NAME = "decoder.layers.1.self_attention.linear_qkv.bias"
GROUPED = replace(GPT2_LIKE, num_query_groups=2)


def bias_gradient(config: GPTConfig) -> torch.Tensor:
    with world_of_one():
        model = build(config)
        perturb(model)
        return loss_and_gradients(model, sample(config))[1][NAME]


@pytest.mark.parametrize("config", [GPT2_LIKE, GROUPED], ids=["a key a head", "a key for two heads"])
def test_only_the_keys_biases_have_no_gradient(config: GPTConfig) -> None:
    gradient = bias_gradient(config)
    counts = depended_on(NAME, heads=config.num_attention_heads, groups=config.query_groups, head_size=config.head_size)
    assert counts is not None and counts.shape == gradient.shape
    assert int((~counts).sum()) == config.query_groups * config.head_size
    assert gradient[~counts].abs().max() < 1e-3 * gradient[counts].abs().min()


def test_with_rotary_positions_the_keys_biases_have_a_gradient() -> None:
    gradient = bias_gradient(replace(GPT2_LIKE, positions="rotary"))
    counts = depended_on(NAME, heads=4, groups=4, head_size=8)
    assert gradient[~counts].abs().max() > 0.01 * gradient[counts].abs().max()


def test_of_other_parameters_every_entry_counts() -> None:
    for name in (NAME.replace("bias", "weight"), NAME.replace("qkv", "proj")):
        assert depended_on(name, heads=4, groups=4, head_size=8) is None
