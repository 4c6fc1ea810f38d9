"""k-nearest neighbours on frozen features, each weighted by its similarity (Wu et al. 2018, section 3.4)."""

from __future__ import annotations

import torch

from training.evaluation.similarity import TILE, spans, unit

NEIGHBOURS = 20
"""As Caron et al. 2021 (DINO), section 4.1, found to work best; Wu et al. took 200."""
TEMPERATURE = 0.07

_ROWS = 256


def predict(
    train: torch.Tensor,
    labels: torch.Tensor,
    test: torch.Tensor,
    *,
    classes: int,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    tile: int = TILE,
) -> torch.Tensor:
    """`[m]` int64: classes of test features `[m, d]` after the nearest of training features `[n, d]`, labelled `[n]`.

    Each of the `neighbours` nearest by cosine votes with weight exp(cosine / temperature). Equal votes go to the class
    of the lowest number. Cosines exist for 256 x `tile` at a time. Works where the features are; the
    result is on the CPU.
    """
    train, test = unit(train, "training features"), unit(test, "test features")
    labels = labels.to(train.device)
    if not len(train) or labels.shape != (len(train),):
        raise ValueError(f"{len(train)} training features with {len(labels)} labels")
    found = torch.empty(len(test), dtype=torch.int64, device=test.device)
    for rows in spans(len(test), _ROWS):
        cosines, nearest = _nearest(test[rows], train, min(neighbours, len(train)), tile)
        votes = cosines.new_zeros(len(cosines), classes)
        votes.scatter_add_(1, labels[nearest], ((cosines - cosines[:, :1]) / temperature).exp())
        found[rows] = votes.argmax(1)
    return found.cpu()


def _nearest(queries: torch.Tensor, train: torch.Tensor, count: int, tile: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and places of the `count` nearest, nearest first: `[m, count]` each."""
    best = queries.new_empty(len(queries), 0)
    place = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for rows in spans(len(train), tile):
        scores = torch.cat([best, queries @ train[rows].T], 1)
        here = torch.arange(rows.start, rows.stop, device=place.device).expand(len(queries), -1)
        best, chosen = scores.topk(min(count, scores.shape[1]), dim=1)
        place = torch.cat([place, here], 1).gather(1, chosen)
    return best, place
