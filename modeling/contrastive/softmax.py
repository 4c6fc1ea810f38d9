"""The losses that are cross-entropies over the batch: CLIP's, and SimCLR's NT-Xent.

With S = s I T^T, a cross-entropy `logsumexp_j S_ij - S_ii` loses all its digits when it is small. So the aligned pair
is left out of the sum: e_i = logsumexp_{j != i}(S_ij - S_ii), loss softplus(e_i), and d loss / d S_ij is
exp(S_ij - S_ii - softplus e_i) off the diagonal, -sigmoid(e_i) on it. Columns (f_j) alike. Two passes over the tiles:
the sums e and f, then the gradients.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from modeling.contrastive.coupled import Coupled
from modeling.contrastive.inputs import prepare, widened
from modeling.contrastive.tiles import Tiles, full_precision, softplus


def clip_loss(
    first: torch.Tensor,
    second: torch.Tensor,
    log_scale: torch.Tensor | float,
    *,
    group: dist.ProcessGroup | None = None,
    tile: int | None = None,
) -> Coupled:
    """InfoNCE both ways: each first feature among all second ones, and the reverse (Radford et al. 2021, figure 3).

    Args:
        first, second: `[n_local, d]`, normalised; row i of one belongs to row i of the other. `n_local` may differ
            among ranks. Half precision is computed in fp32.
        log_scale: ln s; s is the inverse temperature.
        group: the ranks that share the batch; None for this process alone.
        tile: rows and columns visited at a time; None chooses by the device. Extra memory is O(N d + tile^2).

    Raises:
        ModelError: features that are no pairs, or that no rank has any of.
    """
    with full_precision(first.device):
        return _coupled(first, second, log_scale, group, tile, within=False)


def nt_xent_loss(
    first: torch.Tensor,
    second: torch.Tensor,
    log_scale: torch.Tensor | float,
    *,
    group: dist.ProcessGroup | None = None,
    tile: int | None = None,
) -> Coupled:
    """NT-Xent: each of 2N features among all the others, its partner the right one (Chen et al. 2020, equation 1).

    The temperature is exp(-log_scale); a pair's loss is the mean of its two features'. Arguments and errors as
    `clip_loss`; the first features are gathered as well.
    """
    with full_precision(first.device):
        return _coupled(first, second, log_scale, group, tile, within=True)


def _coupled(
    first: torch.Tensor,
    second: torch.Tensor,
    log_scale: torch.Tensor | float,
    group: dist.ProcessGroup | None,
    tile: int | None,
    *,
    within: bool,
) -> Coupled:
    given = prepare(first, second, log_scale, group, tile)
    pool, tiles, a, b, every_b = given.pool, given.tiles, given.first, given.second, given.every_second
    every_a = widened(pool.gather(first.detach())) if within else None

    rows = torch.full((pool.local,), -torch.inf, dtype=torch.float64, device=a.device)
    columns = rows.new_full((pool.total,), -torch.inf)
    # Whatever is near the largest similarities does here, and is added again: they keep the digits of a small number.
    center = float(given.aligned.mean()) if pool.local else 0.0
    _add_logsumexp(tiles, a, every_b, pool.first, center, rows, columns)
    if every_a is not None:
        _add_logsumexp(tiles, a, every_a, pool.first, center, rows, None)
        _add_logsumexp(tiles, b, every_b, pool.first, center, columns[pool.own], None)
    columns = pool.logsumexp(columns)
    every_aligned, every_row = pool.spread(torch.stack([given.aligned, rows], 1)).unbind(1)

    # e and f, and the logsumexp over all candidates: u_i = S_ii + softplus e_i.
    e, f = every_row - every_aligned, columns - every_aligned
    u, v = every_aligned + softplus(e), every_aligned + softplus(f)
    wrong = torch.sigmoid(e) + torch.sigmoid(f)  # what the candidates but the right one weigh, [N]
    weights = _Weights(tiles, u, v, float(every_aligned.mean()))

    first_gradient, partial = torch.zeros_like(a), torch.zeros_like(every_b)
    factor = tiles.scale / (2 * pool.total)
    sums = torch.zeros((), dtype=torch.float64, device=a.device)
    own = pool.own
    for x in tiles.blocks(pool.local):
        rows_of = slice(own.start + x.start, own.start + x.stop)
        for y in tiles.blocks(pool.total):
            weighed, total = weights.tile(a[x], every_b[y], rows_of, y, u, v)
            sums += total
            diagonal = weighed.diagonal(rows_of.start - y.start)
            diagonal.copy_(-wrong[max(rows_of.start, y.start) :][: len(diagonal)])
            first_gradient[x].addmm_(weighed, every_b[y], alpha=factor)
            partial[y].addmm_(weighed.t(), a[x], alpha=factor)
    if every_a is not None:
        for mine, everyone, top, gradient in ((a, every_a, u, first_gradient), (b, every_b, v, partial[own])):
            for x in tiles.blocks(pool.local):
                rows_of = slice(own.start + x.start, own.start + x.stop)
                for y in tiles.blocks(pool.total):
                    weighed, total = weights.tile(mine[x], everyone[y], rows_of, y, top, top)
                    sums += 0.5 * total  # the mirrored tile, here or on another rank, has the same once more
                    gradient[x].addmm_(weighed, everyone[y], alpha=factor)
    second_gradient = pool.scatter_sum(partial)
    # sum G_ij (S_ij - S_ii) and its mirror, as sum G_ij (S_ij - c) - sum_i (S_ii - c) wrong_i
    sums -= ((given.aligned - weights.center) * wrong[own]).sum()
    losses = 0.5 * (softplus(e[own]) + softplus(f[own]))
    loss, log_scale_gradient = pool.sum(torch.stack([losses.sum(), 0.5 * sums])) / pool.total
    return Coupled(
        loss.to(a.dtype), losses.to(a.dtype), first_gradient, second_gradient, log_scale_gradient.to(a.dtype)
    )


def _add_logsumexp(
    tiles: Tiles,
    x: torch.Tensor,
    y: torch.Tensor,
    first: int,
    center: float,
    rows: torch.Tensor,
    columns: torch.Tensor | None,
) -> None:
    """Add each row's and column's sum of exp(S) to `rows` and `columns` (fp64 logarithms), without S_ii.

    Row 0 of `x` belongs to row `first` of `y`.
    """
    for i in tiles.blocks(x.shape[0]):
        for j in tiles.blocks(y.shape[0]):
            tile = tiles.similarities(x[i], y[j], less=center)
            tile.diagonal(first + i.start - j.start).fill_(-torch.inf)
            for into, dim in ((rows[i], 1), (columns[j] if columns is not None else None, 0)):
                if into is None:
                    continue
                top = tile.amax(dim, keepdim=True)
                top.masked_fill_(top == -torch.inf, 0.0)
                powers = torch.sub(tile, top, out=tiles.buffer(1, *tile.shape)).exp_()
                into.copy_(torch.logaddexp(into, powers.sum(dim).double().log_() + top.view(-1) + center))


class _Weights:
    """Tiles of exp(S_ij - u_i) + exp(S_ij - v_j), zero where i = j.

    Args:
        u, v: `[N]` fp64, the logsumexp of every row and column.
        aligned: the mean of S_ii.
    """

    def __init__(self, tiles: Tiles, u: torch.Tensor, v: torch.Tensor, aligned: float) -> None:
        self._tiles = tiles
        lowest, highest = torch.stack(torch.aminmax(torch.cat([u, v]))).tolist()
        # S_ij is at most u_i and v_j, so that with c in this window exp(S_ij - c) is finite and the factors
        # exp(c - u_i), at most 1, are no subnormals: products vanish only where the weight itself would.
        self._one_exponential = highest - lowest <= 2 * tiles.reach
        # Near S_ii, so that little cancels in the sum for the scale.
        self.center = min(max(aligned, highest - 2 * tiles.reach), lowest) if self._one_exponential else aligned

    def tile(
        self, x: torch.Tensor, y: torch.Tensor, i: slice, j: slice, u: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights of rows `i` and columns `j`, and their sum times S_ij - center."""
        shifted = self._tiles.similarities(x, y, less=self.center)
        weights, powers = (self._tiles.buffer(number, *shifted.shape) for number in (1, 2))
        left, right = (self.center - u[i])[:, None], (self.center - v[j])[None, :]
        if self._one_exponential:
            torch.exp(shifted, out=powers)
            torch.add(left.exp().to(x.dtype), right.exp().to(x.dtype), out=weights).mul_(powers)
        else:
            torch.add(shifted, left.to(x.dtype), out=powers).exp_()
            torch.add(shifted, right.to(x.dtype), out=weights).exp_().add_(powers)
        weights.diagonal(i.start - j.start).zero_()
        return weights, shifted.mul_(weights).sum()
