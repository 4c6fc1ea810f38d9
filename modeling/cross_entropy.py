"""The output projection and its cross-entropy as one step, over a vocabulary split among tensor-parallel ranks.

The logits are made a few hundred tokens at a time and never exist as a whole in fp32; one buffer in the weights' dtype
holds softmax - onehot from forward to backward. Per token this is Megatron-LM's vocabulary-parallel cross-entropy
(Shoeybi et al. 2019, section 3): a maximum and a sum over the group, no gathered logits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist

from modeling.execution import allow_compiled_variants

_CHUNK = 256  # tokens: 256 x 50k logits in fp32 are 51 MB
_ALIGNED = 8  # elements of bf16 in 16 bytes
_free_buffers: list[torch.Tensor] = []


def _take_buffer(rows: int, columns: int, like: torch.Tensor) -> torch.Tensor:
    """A `[rows, columns]` buffer, reused from the micro-batch before: fresh pages cost more than a CPU's arithmetic."""
    for i, buffer in enumerate(_free_buffers):
        if buffer.shape == (rows, columns) and buffer.dtype == like.dtype and buffer.device == like.device:
            return _free_buffers.pop(i)
    _free_buffers.clear()
    return torch.empty(rows, columns, dtype=like.dtype, device=like.device)


def _losses_and_errors(logits: torch.Tensor, labels: torch.Tensor, errors: torch.Tensor) -> torch.Tensor:
    """Losses `[n]` of a whole vocabulary's logits, and softmax - onehot into `errors`: one pass when it is compiled."""
    x = logits.float()
    top = x.amax(-1, keepdim=True)
    powers = torch.exp(x - top)
    total = powers.sum(-1, keepdim=True)
    onehot = torch.arange(x.shape[1], device=x.device) == labels[:, None]
    errors.copy_(powers / total - onehot.float())
    return (torch.log(total) + top - x.gather(1, labels[:, None]))[:, 0]


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., torch.Tensor]:
    allow_compiled_variants()
    return torch.compile(_losses_and_errors, fullgraph=True, dynamic=False)  # its import alone takes a second


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        first: int,
        real: int,
        group: dist.ProcessGroup | None,
        keep: bool,
        compiled: bool,
    ) -> torch.Tensor:
        tokens = hidden.shape[0]
        # Fast kernels want rows of logits that begin at 16 bytes: padding fills a vocabulary like 50,257 up to that.
        columns = min(weight.shape[0], -(-real // _ALIGNED) * _ALIGNED)
        rows = weight[:columns]
        losses = torch.empty(tokens, dtype=torch.float32, device=hidden.device)
        errors = _take_buffer(tokens, columns, hidden) if keep else None
        parallel = group is not None and dist.get_world_size(group) > 1
        for low in range(0, tokens, _CHUNK):
            part = slice(low, min(low + _CHUNK, tokens))
            logits = hidden[part] @ rows.t()
            if columns > real:
                logits[:, real:] = -torch.inf  # no part of the softmax, and an error of exactly zero
            if compiled and errors is not None and not parallel:
                losses[part] = _compiled()(logits, labels[part], errors[part])
                continue
            logits = logits.float()
            local = labels[part] - first
            mine = (local >= 0) & (local < real)
            column = local.clamp(0, max(real - 1, 0))[:, None]
            if real:
                top = logits.amax(-1)
            else:  # a rank may hold nothing but padding
                top = torch.full((logits.shape[0],), -torch.inf, device=hidden.device)
            if parallel:
                dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
            logits.sub_(top[:, None])
            sums = torch.zeros(2, logits.shape[0], dtype=torch.float32, device=hidden.device)
            if real:
                sums[1] = logits.gather(1, column)[:, 0] * mine
            logits.exp_()
            sums[0] = logits.sum(-1)
            if parallel:
                dist.all_reduce(sums, group=group)
            losses[part] = torch.log(sums[0]) - sums[1]
            if errors is not None:
                logits.div_(sums[0][:, None])
                if real:
                    logits.scatter_add_(1, column, -mine.float()[:, None])
                errors[part] = logits
        if errors is not None:
            ctx.errors = errors
            ctx.save_for_backward(hidden, weight)
            ctx.columns = columns
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        errors, ctx.errors = ctx.errors, None
        # The tokens' own factors go to the narrow side of both products: [n, h] instead of [n, v] elements to scale.
        scale = grads[0][:, None]
        grad_hidden = (errors @ weight[: ctx.columns]).mul_(scale)
        grad_weight = torch.zeros_like(weight) if ctx.columns < weight.shape[0] else torch.empty_like(weight)
        torch.mm(errors.t(), (hidden * scale).to(hidden.dtype), out=grad_weight[: ctx.columns])
        _free_buffers.append(errors)
        return grad_hidden, grad_weight, None, None, None, None, None, None


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
    compiled: bool = False,
) -> torch.Tensor:
    """Cross-entropy of `labels` under softmax(hidden @ weight^T), per token, in nats.

    Args:
        hidden: `[n, h]`, equal on every rank of `group`; its gradient is this rank's part of the sum over `group`.
        weight: `[v_local, h]`, this rank's rows of the (padded) vocabulary in rank order.
        labels: `[n]`, token ids below `vocab_size`.
        vocab_size: tokens that exist; rows of `weight` beyond are padding and take no part.
        group: the ranks that the vocabulary is split over.
        compiled: what is done to logits element by element may go through torch.compile (where they are not split).

    Returns:
        `[n]` fp32.
    """
    rank = dist.get_rank(group) if group is not None else 0
    first = rank * weight.shape[0]
    real = max(0, min(weight.shape[0], vocab_size - first))
    keep = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _LinearCrossEntropy.apply(hidden, weight, labels, first, real, group, keep, compiled)
