"""Process groups for tests: a real world of one over gloo, and fake worlds in which one rank stands alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from modeling.execution import Execution
from modeling.gpt import network
from modeling.gpt.config import GPTConfig
from modeling.groups import start_groups, stop_groups
from modeling.layout import Layout
from modeling.megatron_bridge import on_meta_device, seed_dropout
from modeling.registry import family
from modeling.sharding import Shard

GPT2_LIKE = GPTConfig(num_layers=2, hidden_size=32, num_attention_heads=4, sequence_length=16, vocab_size=100)
LLAMA_LIKE = replace(
    GPT2_LIKE,
    num_query_groups=2,
    ffn_hidden_size=48,
    tie_embeddings=False,
    positions="rotary",
    normalization="rmsnorm",
    activation="swiglu",
    biases=False,
)


@contextlib.contextmanager
def world_of_one() -> Iterator[None]:
    """A gloo group of this process alone, with the model-parallel groups of the plain layout."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        start_groups(Layout())
        yield
    finally:
        stop_groups()
        dist.destroy_process_group()


@contextlib.contextmanager
def fake_rank(layout: Layout, rank: int, world_size: int) -> Iterator[None]:
    """Stand as one rank of a world whose collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        start_groups(layout)
        yield
    finally:
        stop_groups()
        dist.destroy_process_group()


def first_rank_of(layout: Layout, pipeline: int, world_size: int) -> int:
    """The first rank of a pipeline stage: stages are the slowest axis."""
    return pipeline * layout.tensor * layout.data_parallel(world_size)


def meta_chunks(name: str, config: Any, execution: Execution) -> tuple[list[Any], list[tuple[Any, Shard]]]:
    """What the fake rank that stands builds of a model, without memory: its chunks, and the place of each parameter."""
    implementation = family(name).implementation
    shards = []
    with on_meta_device():
        chunks = implementation.build(config, execution)
        for chunk in chunks:
            described = implementation.describe(chunk)
            shards += [(parameter, described[key]) for key, parameter in chunk.named_parameters()]
    return chunks, shards


def build(config: GPTConfig, **execution: Any) -> network.GPT:
    """The one chunk of a model in a world of one."""
    (chunk,) = network.build(config, Execution(**execution))
    return chunk


def perturb(model: network.GPT, seed: int = 7, scale: float = 0.1) -> None:
    """Give every parameter values of its own: fresh norms and biases are ones and zeros, which hide mix-ups."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for shard, parameter in zip(network.describe(model).values(), model.parameters(), strict=True):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(scale * noise)
            parameter.view(-1)[shard.numel :] = 0  # padding stays zero


def sample(config: GPTConfig, batch: int = 2, seed: int = 1) -> torch.Tensor:
    """Tokens `[batch, sequence_length + 1]`."""
    shape = (batch, config.sequence_length + 1)
    return torch.randint(config.vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def loss_and_gradients(
    model: network.GPT, tokens: torch.Tensor, dropout_seed: int = 5
) -> tuple[float, dict[str, torch.Tensor]]:
    """One micro-batch: mean loss, and every parameter's gradient."""
    seed_dropout(dropout_seed, 0)
    model.zero_grad(set_to_none=True)
    output, loss = network.forward_step({"tokens": tokens}, model)
    value, _ = loss(output)
    value.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    missing = [name for name, gradient in gradients.items() if gradient is None]
    assert not missing, f"no gradient reached {missing}"
    return value.item(), {name: gradient.clone() for name, gradient in gradients.items() if gradient is not None}


def global_tensor(model: network.GPT, name: str) -> torch.Tensor:
    """A parameter of a one-rank model in its global shape."""
    return _in_global_shape(model, {n: p.detach() for n, p in model.named_parameters()}, name)


def global_gradient(model: network.GPT, gradients: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return _in_global_shape(model, gradients, name)


def _in_global_shape(model: network.GPT, tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    shard = network.describe(model)[name]
    return tensors[name].reshape(-1)[: shard.numel].view(shard.global_shape)


def logits(model: network.GPT, tokens: torch.Tensor) -> torch.Tensor:
    """`[b, s, vocab]` in evaluation mode, without a cache."""
    model.eval()
    with torch.no_grad():
        return model(tokens, torch.arange(tokens.shape[1]).expand_as(tokens), None)
