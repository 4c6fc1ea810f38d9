"""Recomputation, compilation and precision change how a model is run, not what it computes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from modeling.gpt.config import GPTConfig
from modeling.gpt.network import GPT
from tests.modeling.worlds import GPT2_LIKE, LLAMA_LIKE, build, loss_and_gradients, perturb, sample

pytestmark = pytest.mark.usefixtures("single_process")
BANDED = replace(GPT2_LIKE, attention="alternating", attention_band=4)
LIKES = pytest.mark.parametrize("like", [GPT2_LIKE, LLAMA_LIKE, BANDED], ids=["gpt2", "llama", "banded"])


def run(config: GPTConfig, **execution: Any) -> tuple[float, dict[str, torch.Tensor], GPT]:
    model = build(config, **execution)
    perturb(model)
    return *loss_and_gradients(model, sample(config)), model


@LIKES
@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputation_changes_no_bit(like: GPTConfig, recompute: str, dropout: float) -> None:
    config = replace(like, dropout=dropout)
    loss, gradients, _ = run(config)
    again, gradients_again, model = run(config, recompute=recompute)
    assert again == loss
    assert all(torch.equal(gradients[name], gradients_again[name]) for name in gradients)
    # A second micro-batch adds to the first.
    output = model(sample(config)[:, :-1], torch.arange(16).expand(2, -1), None, labels=sample(config)[:, 1:])
    output.mean().backward()
    assert not torch.equal(
        model.decoder.layers[0].mlp.linear_fc2.weight.grad, gradients["decoder.layers.0.mlp.linear_fc2.weight"]
    )


@LIKES
@pytest.mark.parametrize(
    ("recompute", "attention", "mlp", "norm"), [("none", 1, 1, 1), ("selective", 2, 2, 1), ("full", 2, 2, 2)]
)
def test_recomputation_runs_again_what_it_says(
    like: GPTConfig, recompute: str, attention: int, mlp: int, norm: int
) -> None:
    model = build(like, recompute=recompute)
    calls: Counter[str] = Counter()
    layer = model.decoder.layers[1]
    parts = {"attention": layer.self_attention.core_attention, "mlp": layer.mlp, "norm": layer.input_layernorm}
    for name, module in parts.items():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    loss_and_gradients(model, sample(like))
    assert calls == {"attention": attention, "mlp": mlp, "norm": norm}


def test_dropout_depends_on_its_seed_alone() -> None:
    config = replace(GPT2_LIKE, dropout=0.3)
    model = build(config)
    losses = [loss_and_gradients(model, sample(config), dropout_seed=seed)[0] for seed in (1, 2, 1)]
    assert losses[0] == losses[2] != losses[1]
    model.eval()
    evaluated = [loss_and_gradients(model, sample(config), dropout_seed=seed)[0] for seed in (1, 2)]
    assert evaluated[0] == evaluated[1] == pytest.approx(run_without_dropout(), rel=1e-6)


def run_without_dropout() -> float:
    return loss_and_gradients(build(GPT2_LIKE), sample(GPT2_LIKE))[0]


@pytest.mark.parametrize(
    ("like", "recompute"),
    [(GPT2_LIKE, "none"), (LLAMA_LIKE, "full"), (BANDED, "none")],
    ids=["gpt2", "llama", "banded"],
)
def test_compiled_layers_compute_the_same(like: GPTConfig, recompute: str) -> None:
    torch.compiler.reset()
    config = replace(like, num_layers=3 if like is BANDED else 1)
    loss, gradients, _ = run(config)
    torch._dynamo.utils.counters.clear()
    compiled, compiled_gradients, model = run(config, compile=True, recompute=recompute)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs >= 1, "nothing was compiled"
    assert compiled == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        assert (compiled_gradients[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
    loss_and_gradients(model, sample(config, seed=2))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "the second micro-batch was compiled again"
    assert not torch._dynamo.utils.counters["graph_break"]


def test_layers_share_what_is_compiled() -> None:
    # One graph for each would take minutes at 96 layers and run into torch's limit on variants of one function.
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    run(replace(GPT2_LIKE, num_layers=12), compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "that of all layers, and the head's"


@LIKES
def test_bf16_keeps_every_parameter_in_bf16_and_agrees_within_its_rounding(like: GPTConfig) -> None:
    config = replace(like, hidden_size=64, initializer_std=0.1)
    loss, gradients, _ = run(config)
    rounded, rounded_gradients, model = run(config, precision="bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert rounded == pytest.approx(loss, rel=1e-2)
    for name, gradient in gradients.items():
        assert (rounded_gradients[name].float() - gradient).norm() < 0.1 * gradient.norm(), name


def test_initial_values_are_the_fp32_ones_rounded_once() -> None:
    fp32, bf16 = build(GPT2_LIKE), build(GPT2_LIKE, precision="bf16")
    for a, b in zip(fp32.parameters(), bf16.parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b)
