"""Contrastive losses for ordinary use: a scalar that `backward()` can be called on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from modeling.contrastive.coupled import Coupled


def contrastive(
    loss_function: Callable[..., Coupled],
    first: torch.Tensor,
    second: torch.Tensor,
    log_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    tile: int | None = None,
) -> torch.Tensor:
    """The loss of the global batch, with this rank's part of its gradient behind it.

    Each rank's backward gives the derivative through its own pairs, and 1/W of that by the scale and the bias, so that
    parameters' gradients are to be *summed* over the W ranks. What averages them, such as DistributedDataParallel,
    wants the loss multiplied by W. All ranks call it together.

    Args:
        loss_function: `clip_loss`, `nt_xent_loss` or `sigmoid_loss`.
        first, second, log_scale, bias: as that function takes them; `bias` for `sigmoid_loss` alone.

    Returns:
        Scalar, equal on every rank.
    """
    return _Contrastive.apply(loss_function, first, second, log_scale, bias, group, tile)


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loss_function: Callable[..., Coupled],
        first: torch.Tensor,
        second: torch.Tensor,
        log_scale: torch.Tensor,
        bias: torch.Tensor | None,
        group: dist.ProcessGroup | None,
        tile: int | None,
    ) -> torch.Tensor:
        scalars = (log_scale,) if bias is None else (log_scale, bias)
        found = loss_function(first, second, *scalars, group=group, tile=tile)
        ctx.ranks = 1 if group is None else dist.get_world_size(group)
        ctx.like = [(x.dtype, x.shape) for x in (first, second, *scalars)]
        gradients = [found.first_gradient, found.second_gradient, found.log_scale_gradient]
        if found.bias_gradient is not None:
            gradients.append(found.bias_gradient)
        ctx.save_for_backward(*gradients)
        return found.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        shares = (1, 1, ctx.ranks, ctx.ranks)
        gradients: list[torch.Tensor | None] = [
            (gradient * (upstream / share)).to(dtype).view(shape)
            for gradient, share, (dtype, shape) in zip(ctx.saved_tensors, shares, ctx.like, strict=False)
        ]
        gradients += [None] * (4 - len(gradients))
        return (None, *gradients, None, None)
