"""The pairs of all ranks seen from one: features gathered, statistics of columns reduced, gradients sent home.

The only part of the losses that communicates. Ranks may hold different numbers of pairs, or none. Everything sent is
O(N d) for N pairs of d features in all: two collectives that carry features, and a few that carry N numbers.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from modeling.errors import ModelError


class Pool:
    """Who holds which of the pairs. Ranks follow each other in the order of the group.

    Args:
        pairs, features: the shape of this rank's `[n_local, d]`.
        group: the ranks that share a batch; None for this process alone.

    Raises:
        ModelError: the ranks' features differ in size, or no rank has a pair. On every rank alike.
    """

    def __init__(self, pairs: int, features: int, device: torch.device, group: dist.ProcessGroup | None) -> None:
        self._group = group if group is not None and dist.get_world_size(group) > 1 else None
        shapes = [[pairs, features]]
        rank = 0
        if self._group is not None:
            rank, ranks = dist.get_rank(self._group), dist.get_world_size(self._group)
            mine = torch.tensor([pairs, features], device=device)
            everyone = [torch.empty_like(mine) for _ in range(ranks)]
            dist.all_gather(everyone, mine, group=self._group)
            shapes = torch.stack(everyone).tolist()
        if len({d for _, d in shapes}) > 1:
            raise ModelError(
                f"features must have one size on all ranks of a contrastive loss: {[d for _, d in shapes]}"
            )
        self._counts: list[int] = [n for n, _ in shapes]
        self.total = sum(self._counts)
        if self.total == 0:
            raise ModelError("a contrastive loss needs at least one pair, and no rank has one")
        self.first = sum(self._counts[:rank])
        self.local = pairs

    @property
    def own(self) -> slice:
        """This rank's pairs among all."""
        return slice(self.first, self.first + self.local)

    def gather(self, features: torch.Tensor) -> torch.Tensor:
        """`[n_local, d]` of every rank as one `[N, d]`; the very tensor in a process alone."""
        if self._group is None:
            return features
        longest = max(self._counts)
        # No backend gathers uneven tensors at once: short ones travel padded, and the padding is cut out on arrival.
        sent = _padded(features, longest)
        received = sent.new_empty(len(self._counts) * longest, sent.shape[1])
        dist.all_gather_single(received, sent, group=self._group)
        if min(self._counts) == longest:
            return received
        parts = received.view(len(self._counts), longest, -1)
        return torch.cat([part[:count] for part, count in zip(parts, self._counts, strict=True)])

    def scatter_sum(self, gradient: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of `[N, d]`, of which each keeps the rows of its own pairs: `[n_local, d]`."""
        if self._group is None:
            return gradient
        longest = max(self._counts)
        if min(self._counts) < longest:
            parts = gradient.split(self._counts)
            gradient = torch.cat([_padded(part, longest) for part in parts])
        received = gradient.new_empty(longest, gradient.shape[1])
        dist.reduce_scatter_single(received, gradient, group=self._group)
        return received[: self.local]

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """`[n_local, k]` of every rank, a few numbers a pair, as one `[N, k]`."""
        if self._group is None:
            return values
        everyone = values.new_zeros(self.total, *values.shape[1:])
        everyone[self.own] = values
        return self.sum(everyone)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place."""
        if self._group is not None:
            dist.all_reduce(values, group=self._group)
        return values

    def logsumexp(self, values: torch.Tensor) -> torch.Tensor:
        """log of the sum over ranks of exp(values): a maximum, then a sum. -inf stands for nothing."""
        if self._group is None:
            return values
        top = values.clone()
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=self._group)
        top.nan_to_num_(nan=torch.nan, posinf=torch.inf, neginf=0.0)  # -inf - -inf would be NaN
        return self.sum((values - top).exp_()).log_().add_(top)


def _padded(rows: torch.Tensor, length: int) -> torch.Tensor:
    if rows.shape[0] == length:
        return rows.contiguous()
    padded = rows.new_zeros(length, rows.shape[1])
    padded[: rows.shape[0]] = rows
    return padded
