"""LayerNorm and RMSNorm with the signature that Megatron Core's specs call, fit for sequence parallelism.

Under sequence parallelism each rank norms its part of the sequence, so the gradients of a norm's weights are partial
sums; the parameters are marked, and the engine sums them over the tensor-parallel group.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


def _mark(module: torch.nn.Module, config: TransformerConfig) -> None:
    for parameter in module.parameters():
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class LayerNorm(torch.nn.LayerNorm):
    """Layer normalisation (Ba et al. 2016) over the hidden axis of `[s, b, h]`."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        device = torch.cuda.current_device()
        super().__init__(hidden_size, eps=eps, device=device, dtype=config.params_dtype)
        _mark(self, config)


class RMSNorm(torch.nn.RMSNorm):
    """Root-mean-square normalisation (Zhang and Sennrich 2019) over the hidden axis of `[s, b, h]`."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        device = torch.cuda.current_device()
        super().__init__(hidden_size, eps=eps, device=device, dtype=config.params_dtype)
        _mark(self, config)


NORMS: dict[str, type[torch.nn.Module]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}
