"""Cosine similarities in tiles, and what counts as a tie."""

from __future__ import annotations

from collections.abc import Iterator

import torch

TIE = 1e-6
"""Cosines this near to each other count as equal: it is what fp32 rounding leaves of features that are the same. Ties
go against the model everywhere in this package, so that one whose features have collapsed scores nothing.
"""
TILE = 1024


def unit(features: torch.Tensor, what: str = "features") -> torch.Tensor:
    """Rows `[n, d]` at length 1, fp32 (fp64 stays). Raises ValueError for numbers that are not finite."""
    if features.ndim != 2:
        raise ValueError(f"{what} have the shape {list(features.shape)}, not [n, d]")
    if features.dtype != torch.float64:
        features = features.float()
    if not bool(torch.isfinite(features).all()):
        raise ValueError(f"{what} are not finite numbers")
    return torch.nn.functional.normalize(features, dim=1)


def spans(count: int, tile: int = TILE) -> Iterator[slice]:
    """`count` rows as slices of at most `tile`."""
    if tile < 1:
        raise ValueError(f"a tile of {tile} rows")
    for low in range(0, count, tile):
        yield slice(low, min(low + tile, count))
