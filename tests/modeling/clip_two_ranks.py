"""One of two tensor-parallel ranks of test_clip_tensor_parallel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from modeling.clip import network
from modeling.groups import start_groups, stop_groups
from modeling.layout import Layout
from tests.modeling.clip_worlds import GELU, TINY, build, loss_and_gradients, pairs

LIKES = {
    "vit": TINY,
    "gelu": GELU,
    "patch-dropout": replace(TINY, patch_dropout=0.5),
    "locked": replace(TINY, lock_image=True),
}
EXECUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "full": {"recompute": "full"},
    "selective": {"recompute": "selective"},
}


def pieces(model: network.CLIP, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """By name: the box's place, its values, and whether the engine has to sum it over the tensor-parallel group."""
    marked = {n: bool(getattr(p, "sequence_parallel", False)) for n, p in model.named_parameters()}
    return {
        name: (shard.global_shape, shard.offset, tensors[name].view(shard.shape), marked[name])
        for name, shard in network.describe(model).items()
        if name in tensors
    }


def leave(folder: str) -> None:
    """Everything that the tests look at, in `folder`/rank-N.pt."""
    result: dict[str, Any] = {}
    for sequence in (False, True):
        layout = Layout(tensor=2, sequence=sequence)
        start_groups(layout)
        for name, config in LIKES.items():
            for way, execution in EXECUTIONS.items():
                if way != "plain" and name != "vit":
                    continue
                model = build(config, layout=layout, **execution)
                outputs, gradients = loss_and_gradients(model, *pairs(config))
                result[f"{name}-{way}-{sequence}"] = {
                    **outputs,
                    "gradients": pieces(model, gradients),
                    "weights": pieces(model, {n: p.detach() for n, p in model.named_parameters()}),
                }
        stop_groups()
    torch.save(result, Path(folder) / f"rank-{dist.get_rank()}.pt")
