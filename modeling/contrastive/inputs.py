"""What the contrastive losses take, checked and brought to the precision they compute in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist

from modeling.contrastive.pool import Pool
from modeling.contrastive.tiles import Tiles, default_tile
from modeling.errors import ModelError


@dataclass(frozen=True)
class Inputs:
    """One call's features, where they stand among those of all ranks, and the tiles to work in."""

    first: torch.Tensor
    """`[n_local, d]`, fp32 or fp64."""
    second: torch.Tensor
    """`[n_local, d]`."""
    every_second: torch.Tensor
    """`[N, d]`: those of all ranks."""
    aligned: torch.Tensor
    """`[n_local]` fp64: the similarity of each pair, s times the dot product of its two features."""
    pool: Pool
    tiles: Tiles


def prepare(
    first: torch.Tensor,
    second: torch.Tensor,
    log_scale: torch.Tensor | float,
    group: dist.ProcessGroup | None,
    tile: int | None,
) -> Inputs:
    """Check the features, gather the second ones and choose the tiles; under `full_precision`.

    Raises:
        ModelError: features that are no pairs, or a tile of nothing.
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise ModelError(
            f"pairs of features must be two tensors [n, d], not {list(first.shape)} and {list(second.shape)}"
        )
    if first.dtype != second.dtype or first.device != second.device or not first.is_floating_point():
        raise ModelError(
            "pairs of features must be of one floating dtype on one device, "
            f"not {first.dtype} on {first.device} and {second.dtype} on {second.device}"
        )
    if tile is not None and tile < 1:
        raise ModelError(f"a tile of the contrastive loss has at least one row, not {tile}")
    pool = Pool(first.shape[0], first.shape[1], first.device, group)
    scale = math.exp(number(log_scale))
    # Half-precision features travel as they are, and become fp32 on arrival.
    a, every_b = widened(first.detach()), widened(pool.gather(second.detach()))
    b = every_b[pool.own]
    tiles = Tiles(scale, a, a.shape[0], every_b.shape[0], tile or default_tile(first.device))
    aligned = torch.empty(pool.local, dtype=torch.float64, device=first.device)
    for rows in tiles.blocks(pool.local):
        aligned[rows] = (a[rows].double() * b[rows].double()).sum(1).mul_(scale)
    return Inputs(a, b, every_b, aligned, pool, tiles)


def number(value: torch.Tensor | float) -> float:
    """A scalar of either kind, of which no gradient is kept."""
    return value.item() if isinstance(value, torch.Tensor) else float(value)


def widened(features: torch.Tensor) -> torch.Tensor:
    """In fp32 at least."""
    return features.to(torch.promote_types(features.dtype, torch.float32)).contiguous()
