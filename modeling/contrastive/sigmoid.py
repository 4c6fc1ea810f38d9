"""SigLIP's loss: every pair of features is a yes-or-no question of its own.

No sum over candidates, so that one pass over the tiles gives the loss and its gradients; only the second features and
their gradients travel.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from modeling.contrastive.coupled import Coupled
from modeling.contrastive.inputs import number, prepare
from modeling.contrastive.tiles import full_precision, softplus


def sigmoid_loss(
    first: torch.Tensor,
    second: torch.Tensor,
    log_scale: torch.Tensor | float,
    bias: torch.Tensor | float,
    *,
    group: dist.ProcessGroup | None = None,
    tile: int | None = None,
) -> Coupled:
    """-1/N sum_ij log sigmoid(z_ij (s x_i y_j + bias)), z 1 for aligned pairs and -1 for others (Zhai et al. 2023).

    A mean over the batch of sums over it, as in the paper's equation 1 and its algorithm 1. Arguments and errors as
    `clip_loss`; `bias` starts at -10 in the paper.
    """
    with full_precision(first.device):
        return _coupled(first, second, log_scale, number(bias), group, tile)


def _coupled(
    first: torch.Tensor,
    second: torch.Tensor,
    log_scale: torch.Tensor | float,
    bias: float,
    group: dist.ProcessGroup | None,
    tile: int | None,
) -> Coupled:
    given = prepare(first, second, log_scale, group, tile)
    pool, tiles, a, every_b = given.pool, given.tiles, given.first, given.every_second
    factor = tiles.scale / pool.total
    # The aligned pairs: x = S_ii + bias, loss softplus(-x).
    aligned = -torch.sigmoid(-(given.aligned + bias))
    losses = softplus(-(given.aligned + bias))
    slopes = torch.stack([(aligned * given.aligned).sum(), aligned.sum()])  # sum of G S, sum of G

    first_gradient, partial = torch.zeros_like(a), torch.zeros_like(every_b)
    for i in tiles.blocks(pool.local):
        for j in tiles.blocks(pool.total):
            similarities = tiles.similarities(a[i], every_b[j])
            logits = torch.add(similarities, bias, out=tiles.buffer(1, *similarities.shape))
            offset = pool.first + i.start - j.start
            diagonal = logits.diagonal(offset)
            diagonal.fill_(-torch.inf)  # neither a loss nor a slope
            losses[i] += softplus(logits).sum(1)
            slope = logits.sigmoid_()
            slopes[1] += slope.sum()
            slopes[0] += similarities.mul_(slope).sum()
            diagonal.copy_(aligned[i][max(0, -offset) :][: len(diagonal)])
            first_gradient[i].addmm_(slope, every_b[j], alpha=factor)
            partial[j].addmm_(slope.t(), a[i], alpha=factor)
    second_gradient = pool.scatter_sum(partial)
    sums = pool.sum(torch.cat([losses.sum().view(1), slopes])) / pool.total
    loss, log_scale_gradient, bias_gradient = sums.to(a.dtype)
    return Coupled(loss, losses.to(a.dtype), first_gradient, second_gradient, log_scale_gradient, bias_gradient)
