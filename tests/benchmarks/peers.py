"""The other side of `tests.benchmarks.step`: a plain GPT trained the way nanoGPT trains, and transformers' GPT-2.

Both train with fp32 weights under bf16 autocast (as nanoGPT and transformers' Trainer with `bf16=True` do), clip the
gradient's norm, step torch's fused AdamW, read random windows from a memory-mapped file and look at the loss as often
as Trestle logs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The decoder that every side trains, and its batch."""

    layers: int = 6
    hidden: int = 384
    heads: int = 6
    sequence: int = 256
    vocabulary: int = 8192
    batch: int = 8

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return self.batch * self.sequence


class Block(nn.Module):
    """Pre-norm attention and MLP on `[b, s, h]`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        h, self.heads = shape.hidden, shape.heads
        self.norm1, self.norm2 = nn.LayerNorm(h), nn.LayerNorm(h)
        self.qkv, self.out = nn.Linear(h, 3 * h), nn.Linear(h, h)
        self.up, self.down = nn.Linear(h, 4 * h), nn.Linear(4 * h, h)

    def forward(self, x: Tensor) -> Tensor:
        b, s, h = x.shape
        q, k, v = (t.view(b, s, self.heads, -1).transpose(1, 2) for t in self.qkv(self.norm1(x)).split(h, dim=2))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(b, s, h))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class PlainGPT(nn.Module):
    """GPT-2 with tied embeddings, written in plain torch; returns the mean loss."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.positions = nn.Embedding(shape.sequence, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.hidden)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * shape.layers) if residual else 1.0))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        x = self.tokens(inputs) + self.positions(torch.arange(inputs.shape[1], device=inputs.device))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def plain_gpt(shape: Shape, *, compile: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The plain GPT's loss, compiled as a whole as nanoGPT does, or eager."""
    model = PlainGPT(shape)
    return torch.compile(model) if compile else model  # type: ignore[return-value]


def transformers_gpt2(shape: Shape) -> nn.Module:
    """transformers' GPT2LMHeadModel at the same shape, from its config: nothing is downloaded."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.sequence,
        n_embd=shape.hidden,
        n_layer=shape.layers,
        n_head=shape.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    model = GPT2LMHeadModel(config)

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
            # transformers shifts the labels itself; given them shifted it needs to be told so.
            result: Any = self.model(input_ids=inputs, labels=labels, shift_labels=labels)
            return result.loss

    return Loss()


def trainer(model: Any, shape: Shape, flat: Path, log_every: int) -> Callable[[], None]:
    """One training step a call, fused AdamW and clipping included."""
    data = np.memmap(flat, dtype=np.uint16, mode="r")
    generator = torch.Generator().manual_seed(1)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
    losses: list[float] = []
    count = 0

    def step() -> None:
        nonlocal count
        starts = torch.randint(len(data) - shape.sequence - 1, (shape.batch,), generator=generator).tolist()
        rows = np.stack([data[i : i + shape.sequence + 1].astype(np.int64) for i in starts])
        tokens = torch.from_numpy(rows)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(tokens[:, :-1], tokens[:, 1:].contiguous())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        count += 1
        if count % log_every == 0:
            losses.append(loss.item())

    return step
