"""Causal attention for Megatron Core's spec, dense or locally banded: by torch's scaled-dot-product kernels, or in
blocks where those are slow.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from modeling import blockwise_attention


class CausalAttention(torch.nn.Module):
    """softmax(Q K^T / sqrt(d)) V with a causal, optionally banded mask; s x s weights are kept for short bf16 sequences
    on a CPU only.

    Query `[s, b, heads, d]`, key and value `[t, b, groups, d]`, result `[s, b, heads * d]`. With `band` each position
    sees itself and the `band - 1` before it.
    """

    def __init__(
        self, config: TransformerConfig, *, layer_number: int, band_of_layer: tuple[int | None, ...] = (), **_: Any
    ) -> None:
        super().__init__()
        self.dropout = float(config.attention_dropout)
        self.in_fork = config.sequence_parallel  # Megatron Core's block then holds the tracker's fork already
        self.band = band_of_layer[layer_number - 1] if band_of_layer else None

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        attn_mask_type: AttnMaskType | None = None,
        **_: Any,
    ) -> torch.Tensor:
        s, b, heads, d = query.shape
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        # One new token against a cache: it may see all of it, so that no mask is the causal mask.
        causal = attn_mask_type != AttnMaskType.no_mask
        mask = None
        if self.band is not None and key.shape[0] > self.band:
            mask, causal = self._band_mask(s, key.shape[0], query.device), False
        dropping = self.training and self.dropout > 0
        if causal and not dropping and blockwise_attention.takes(query, key):
            return blockwise_attention.blockwise_causal_attention(query, key, value)
        grouped = key.shape[2] != heads
        if dropping:
            # Heads are split over the tensor-parallel group: each rank must draw its own mask.
            with nullcontext() if self.in_fork else tensor_parallel.get_cuda_rng_tracker().fork():
                out = F.scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, dropout_p=self.dropout, is_causal=causal, enable_gqa=grouped
                )
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        return out.permute(2, 0, 1, 3).reshape(s, b, heads * d)

    def _band_mask(self, s: int, t: int, device: torch.device) -> torch.Tensor:
        """True where position i of the last `s` of `t` positions sees position j: i - band < j <= i."""
        assert self.band is not None
        i = torch.arange(t - s, t, device=device)[:, None]
        j = torch.arange(t, device=device)[None, :]
        return (j <= i) & (j > i - self.band)
