"""What both transformers are: Megatron Core's block over our attention, norms and linear layers.

Under sequence parallelism (Korthikanti et al. 2022) the block's inside works on a part of the sequence. Everything
before and after it (embeddings, the norms around it, projections) sees whole samples on every rank of the
tensor-parallel group, so that only the block's own norms and biases have partial gradients.
"""

from __future__ import annotations

from modeling import groups, transformer  # isort: skip  (the bridge, within, first: it keeps Megatron Core quiet)

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from modeling.attention import CausalAttention
from modeling.clip.config import CLIPConfig
from modeling.execution import Execution
from modeling.norms import LayerNorm


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), the approximation of GELU (Hendrycks and Gimpel 2016) that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


class Transformer(TransformerBlock):
    """Pre-norm transformer layers without a final norm, `[s, b, h]` → `[s, b, h]`, both whole on every rank.

    Attention is causal, or over all of the `s` positions.
    """

    def __init__(
        self, clip: CLIPConfig, execution: Execution, *, layers: int, width: int, heads: int, causal: bool
    ) -> None:
        config = transformer_config(clip, execution, layers=layers, width=width, heads=heads)
        mask = AttnMaskType.causal if causal else AttnMaskType.no_mask
        spec = transformer.layer_spec(norm=LayerNorm, attention=CausalAttention, mask=mask, ffn_size=4 * width)
        super().__init__(config, TransformerBlockSubmodules(layer_specs=[spec] * layers), post_layer_norm=False)
        self.causal = causal

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.config.sequence_parallel:
            return super().forward(hidden, None)  # type: ignore[no-any-return]
        # Each rank takes an equal part. Zeros fill the last one up; causal attention never looks at them.
        s, tensor = hidden.shape[0], self.config.tensor_model_parallel_size
        padding = -s % tensor
        mask = None
        if padding:
            hidden = F.pad(hidden, (0, 0, 0, 0, 0, padding))
            if not self.causal:
                mask = torch.zeros(1, 1, 1, s + padding, dtype=hidden.dtype, device=hidden.device)
                mask[..., s:] = -torch.inf
        group = groups.tensor_group()
        part = tensor_parallel.scatter_to_sequence_parallel_region(hidden, group=group)
        part = super().forward(part, mask)
        # What follows computes the same on every rank, and so does its gradient: not to be summed.
        whole = tensor_parallel.gather_from_sequence_parallel_region(
            part, tensor_parallel_output_grad=False, group=group
        )
        return whole[:s]


def transformer_config(
    clip: CLIPConfig, execution: Execution, *, layers: int, width: int, heads: int
) -> TransformerConfig:
    """One tower's shape and the execution in Megatron Core's terms."""
    return transformer.transformer_config(
        execution,
        dropout=clip.dropout,
        num_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        ffn_hidden_size=4 * width,
        layernorm_epsilon=clip.norm_epsilon,
        activation_func=quick_gelu if clip.activation == "quickgelu" else F.gelu,
    )


def empty(execution: Execution, *shape: int) -> torch.nn.Parameter:
    """A parameter to be filled by `modeling.sharding.fill`."""
    return torch.nn.Parameter(torch.empty(shape, dtype=execution.dtype, device=torch.cuda.current_device()))


def whole_norm(clip: CLIPConfig, execution: Execution, width: int) -> torch.nn.LayerNorm:
    """A norm over whole samples, outside the block."""
    return torch.nn.LayerNorm(width, eps=clip.norm_epsilon, device=torch.cuda.current_device(), dtype=execution.dtype)
