"""Causal attention of short sequences in bf16 on a CPU, by matrix products over blocks of queries.

torch's own CPU kernel takes about a quarter of a small model's step, most of it in backward. Here each block of queries
meets the keys up to its own end, so that what lies above the diagonal is left out but for a triangle a block, and the
products go to the CPU's bf16 units. The weights of the softmax are kept for backward: s² / 2 of them a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 128  # queries: smaller blocks skip more and feed the matrix units worse
LONGEST = 1024  # positions, from where on keeping the weights costs more memory than it is worth


def takes(query: Tensor, key: Tensor) -> bool:
    """Whether query and key `[s, b, heads, d]` are a case for `blockwise_causal_attention`."""
    here = query.device.type == "cpu" and query.dtype == torch.bfloat16
    return here and query.shape == key.shape and 1 < query.shape[0] <= LONGEST


def blockwise_causal_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, band: int | None = None
) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V under a causal mask. All `[s, b, heads, d]`, result `[s, b, heads * d]`.

    `mask` `[b or 1, 1, s, s]` is added to the scores instead of the causal one. It must be minus infinity above the
    diagonal and, with `band`, on keys that lie `band` or more positions back: those before a block's reach are left
    out. Scores are rounded to the inputs' dtype; the softmax is computed in fp32.
    """
    s, b, heads, d = query.shape
    q, k, v = (x.reshape(s, b * heads, d).transpose(0, 1).contiguous() for x in (query, key, value))
    out: Tensor = _BlockwiseCausal.apply(q, k, v, mask, band)
    return out.transpose(0, 1).reshape(s, b, heads * d)


class _BlockwiseCausal(torch.autograd.Function):
    """On `[n, s, d]`, contiguous."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, band: int | None) -> Tensor:
        s, scale = q.shape[1], q.shape[2] ** -0.5
        outs, weights = [], []
        for low in range(0, s, BLOCK):
            high = min(low + BLOCK, s)
            first = 0 if band is None or mask is None else max(0, low - band + 1)
            scores = torch.bmm(q[:, low:high], k[:, first:high].transpose(1, 2)).mul_(scale)
            if mask is None:
                above = torch.ones(high - low, high - low, dtype=torch.bool, device=q.device).triu(1)
                scores[:, :, low - first :].masked_fill_(above, -torch.inf)
            else:
                # [n, …] is [b, heads, …]; a mask for all samples alike has one for b.
                scores.unflatten(0, (mask.shape[0], -1)).add_(mask[:, :, low:high, first:high])
            weights.append(torch.softmax(scores, -1))
            outs.append(torch.bmm(weights[-1], v[:, first:high]))
        ctx.save_for_backward(q, k, v, *weights)
        return torch.cat(outs, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *weights = ctx.saved_tensors
        grad, scale = grads[0].contiguous(), q.shape[2] ** -0.5
        grad_q, grad_k, grad_v = [], torch.zeros_like(k), torch.zeros_like(v)
        for low, p in zip(range(0, q.shape[1], BLOCK), weights, strict=True):
            high = low + p.shape[1]
            first = high - p.shape[2]
            part = grad[:, low:high]
            grad_v[:, first:high] += torch.bmm(p.transpose(1, 2), part)
            grad_p = torch.bmm(part, v[:, first:high].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype).mul_(scale)
            grad_q.append(torch.bmm(grad_scores, k[:, first:high]))
            grad_k[:, first:high] += torch.bmm(grad_scores.transpose(1, 2), q[:, low:high])
        return torch.cat(grad_q, 1), grad_k, grad_v, None, None
