"""Attention for Megatron Core's spec, causal unless it says otherwise, dense or locally banded, in whole samples or
document by document: by torch's scaled-dot-product kernels, or in blocks where those are slow.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from modeling import blockwise_attention, document_masks

_kept_band_mask = lru_cache(maxsize=4)(document_masks.band_mask)
"""One s x s mask for all layers and steps; a band as wide as the sequence is none."""


class CausalAttention(torch.nn.Module):
    """softmax(Q K^T / sqrt(d)) V with a causal, optionally banded mask, or with `AttnMaskType.no_mask` over all keys;
    s x s weights are kept for short causal bf16 sequences on a CPU only.

    Query `[s, b, heads, d]`, key and value `[t, b, groups, d]`, result `[s, b, heads * d]`. With `band` each position
    sees itself and the `band - 1` before it. `attention_mask` is None, or what `document_masks.attention_mask` made for
    the whole model; it replaces the other masks. With `no_mask` it may also be `[1, 1, 1, t]`, for keys to leave out.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        layer_number: int,
        band_of_layer: tuple[int | None, ...] = (),
        length: int = 0,
        **_: Any,
    ) -> None:
        super().__init__()
        self.dropout = float(config.attention_dropout)
        self.in_fork = config.sequence_parallel  # Megatron Core's block then holds the tracker's fork already
        self.band = band_of_layer[layer_number - 1] if band_of_layer else None
        self._blocks_mask = self._mask_of_blocks(length, config.params_dtype)

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
        if s == 1 and self.band is not None:
            key, value = key[-self.band :], value[-self.band :]
        # One new token against a cache: it may see all of it, so that no mask is the causal mask.
        looks_ahead = attn_mask_type == AttnMaskType.no_mask
        dropping = self.training and self.dropout > 0
        if not looks_ahead and not dropping and blockwise_attention.takes(query, key):
            kept = self._blocks_mask
            fits = attention_mask is None and kept is not None and kept.shape[-1] == s
            mask = kept if fits else self._mask(query, key, attention_mask)
            return blockwise_attention.blockwise_causal_attention(query, key, value, mask, self.band)
        mask = self._mask(query, key, attention_mask)
        causal = mask is None and not looks_ahead
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
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

    def _mask_of_blocks(self, length: int, dtype: torch.dtype) -> torch.Tensor | None:
        """This layer's mask for whole samples of `length`, made once where attention goes in blocks: a compiled layer
        would otherwise compute it element by element, each time and for each head.
        """
        here = torch.cuda.current_device()
        if here != "cpu" or dtype != torch.bfloat16 or not 1 < length <= blockwise_attention.LONGEST:
            return None
        return _kept_band_mask(length, length, self.band or length, dtype, torch.device("cpu"))

    def _mask(self, query: torch.Tensor, key: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """What is added to this layer's scores, `[b or 1, 1, s, t]`; None where causal, or nothing, is all there is."""
        if attention_mask is not None:
            return attention_mask[:, :1] if self.band is None else attention_mask[:, 1:]
        s, t = query.shape[0], key.shape[0]
        if self.band is None or t <= self.band:
            return None
        # A compiled graph makes its own; a tensor that is only traced must not be kept for those that are computed.
        real = type(query) is torch.Tensor and not torch.compiler.is_compiling()
        make = _kept_band_mask if real else document_masks.band_mask
        return make(s, t, self.band, query.dtype, query.device)
