"""One of two tensor-parallel ranks of test_tensor_parallel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from modeling.execution import Execution
from modeling.gpt import network
from modeling.gpt.config import GPTConfig
from modeling.gpt.generation import generate, generate_batch
from modeling.groups import start_groups, stop_groups
from modeling.layout import Layout
from modeling.megatron_bridge import seed_dropout
from tests.modeling.worlds import GPT2_LIKE, LLAMA_LIKE, loss_and_gradients, sample

# Large initial weights, so that without training the next token depends on the text.
LIKES = {
    "gpt2": replace(GPT2_LIKE, initializer_std=0.5, tie_embeddings=False),
    "gpt2-tied": replace(GPT2_LIKE, initializer_std=0.2),
    "llama": replace(LLAMA_LIKE, initializer_std=0.5),
    # 30 tokens padded to 128: the second rank holds nothing but padding.
    "padding": replace(GPT2_LIKE, initializer_std=0.5, vocab_size=30),
}
PROMPT = [17, 3, 29, 4, 22]


def generated(model: network.GPT) -> dict[str, list[int]]:
    batch = torch.tensor([PROMPT, PROMPT[::-1]])
    return {
        "greedy": list(generate(model, PROMPT, max_new_tokens=11, temperature=0)),
        "sampled": list(generate(model, PROMPT, max_new_tokens=11, temperature=2.0, top_k=50, top_p=0.99, seed=3)),
        "batch": torch.cat(list(generate_batch(model, batch, max_new_tokens=4, temperature=0))).tolist(),
    }


def pieces(model: network.GPT, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """By global name: the box's place and its values."""
    result = {}
    for name, shard in network.describe(model).items():
        values = tensors[name].reshape(-1)[: shard.numel].view(shard.shape)
        result[shard.name] = (shard.global_shape, shard.offset, values)
    return result


def dropout(config: GPTConfig, layout: Layout, tensor_rank: int) -> dict[str, Any]:
    """The activations that leave the embedding and each layer, and the masks on attention weights, under dropout."""
    (model,) = network.build(replace(config, dropout=0.5), Execution(layout=layout))
    seed_dropout(11, tensor_rank)
    activations = []
    for module in (model.embedding, *model.decoder.layers):
        module.register_forward_hook(
            lambda _module, _inputs, output: activations.append(
                (output[0] if isinstance(output, tuple) else output).detach()
            )
        )
    tokens = sample(config)
    network.forward_step({"tokens": tokens}, model)
    # Equal scores, and values that are unit vectors: what comes out are the attention weights themselves.
    from megatron.core.transformer.enums import AttnMaskType

    s, heads = 8, 2
    query = torch.zeros(s, 1, heads, s)
    value = torch.eye(s)[:, None, None, :].expand(s, 1, heads, s)
    core = model.decoder.layers[0].self_attention.core_attention
    weights = core(query, query, value, attn_mask_type=AttnMaskType.causal).view(s, heads, s)
    return {"activations": activations, "attention": weights != 0}


def leave(folder: str) -> None:
    """Everything that the tests look at, in `folder`/rank-N.pt."""
    result: dict[str, Any] = {}
    for sequence in (False, True):
        layout = Layout(tensor=2, sequence=sequence)
        place = start_groups(layout)
        for name, config in LIKES.items():
            (model,) = network.build(config, Execution(layout=layout))
            loss, gradients = loss_and_gradients(model, sample(config))
            result[f"{name}-{sequence}"] = {
                "loss": loss,
                "gradients": pieces(model, gradients),
                "before": generated(model),
                # Generation leaves the layout's way of running behind as it was.
                "loss_after": loss_and_gradients(model, sample(config))[0],
            }
        result[f"dropout-{sequence}"] = dropout(GPT2_LIKE, layout, place.tensor)
        if not sequence:
            (model,) = network.build(LIKES["llama"], Execution(layout=layout, compile=True))
            result["compiled"] = loss_and_gradients(model, sample(LIKES["llama"]))[0]
        stop_groups()
    torch.save(result, Path(folder) / f"rank-{dist.get_rank()}.pt")
