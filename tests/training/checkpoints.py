"""Checkpoints for tests: known tensors, cut and written by as many ranks as one likes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from training.checkpoint import CheckpointWriter, Piece, Retention

KINDS = ("weight", "exp_avg", "exp_avg_sq")
SHAPES = {"embedding": (7, 5), "layers.0.bias": (6,), "scale": (), "layers.0.cube": (3, 4, 2)}


def values(name: str, kind: str, step: int = 0) -> torch.Tensor:
    """Element i of a tensor is 1000·step + 100·(place of its kind) + i + (length of its name): exact in fp32."""
    shape = SHAPES[name]
    start = 1000 * step + 100 * KINDS.index(kind) + len(name)
    return (torch.arange(Piece.whole(name, kind, shape).numel) + start).float().reshape(shape)


def share(rank: int, world_size: int, step: int = 0) -> list[tuple[Piece, torch.Tensor]]:
    """Rank's share of every tensor, cut into flat ranges as ZeRO does."""
    pieces = []
    for name, shape in SHAPES.items():
        for kind in KINDS:
            whole = values(name, kind, step).reshape(-1)
            start, stop = (whole.numel() * r // world_size for r in (rank, rank + 1))
            piece = Piece(name, kind, shape, (0,) * len(shape), shape, start, stop)
            pieces.append((piece, whole[start:stop]))
    return pieces


def write(
    directory: Path, *steps: int, world_size: int = 2, state: dict[str, Any] | None = None, **options: Any
) -> list[CheckpointWriter]:
    """Write checkpoints of these steps as `world_size` writers in this process; the writers."""
    options = {"retention": Retention(keep=100), "deadline_seconds": 30.0} | options
    writers = [CheckpointWriter(directory, rank, world_size, **options) for rank in range(world_size)]
    for step in steps:
        for rank, writer in enumerate(writers):
            writer.save(step, share(rank, world_size, step), state or {"tokens": 10 * step}, {"of_rank": rank})
        for writer in writers:
            writer.wait()
    return writers
