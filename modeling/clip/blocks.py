"""What both transformers are: Megatron Core's block over our attention, norms and linear layers.

Under sequence parallelism (Korthikanti et al. 2022) the block's inside works on a part of the sequence. Everything
before and after it (embeddings, the norms around it, projections) sees whole samples on every rank of the
tensor-parallel group, so that only the block's own norms and biases have partial gradients.
"""

from __future__ import annotations

import warnings
from typing import Any

from modeling import groups, megatron_bridge  # isort: skip  (the bridge first: it keeps Megatron Core's imports quiet)

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from modeling.attention import CausalAttention
from modeling.clip.config import CLIPConfig
from modeling.execution import Execution
from modeling.linear import ColumnParallelLinear, RowParallelLinear
from modeling.norms import LayerNorm

megatron_bridge.prepare()


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
        spec = _layer_spec(AttnMaskType.causal if causal else AttnMaskType.no_mask, 4 * width)
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


def _layer_spec(mask: AttnMaskType, ffn_size: int) -> ModuleSpec:
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": mask},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear, core_attention=CausalAttention, linear_proj=RowParallelLinear
        ),
    )
    mlp = ModuleSpec(
        module=MLP,
        params={"ffn_hidden_size": ffn_size},
        submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear),
    )
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=LayerNorm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=LayerNorm,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
        ),
    )


def transformer_config(
    clip: CLIPConfig, execution: Execution, *, layers: int, width: int, heads: int
) -> TransformerConfig:
    """Our two configs in Megatron Core's terms; it allocates, and we initialise."""
    recompute: dict[str, Any] = {}
    if execution.recompute == "full":
        recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    elif execution.recompute == "selective":
        recompute = {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "mlp"]}
    with warnings.catch_warnings():
        # Recomputing core attention would be a waste with Transformer Engine's fused one; ours it is meant for.
        warnings.filterwarnings(
            "ignore", message="If you are using transformer_engine as the transformer implementation"
        )
        return TransformerConfig(
            num_layers=layers,
            hidden_size=width,
            num_attention_heads=heads,
            ffn_hidden_size=4 * width,
            layernorm_epsilon=clip.norm_epsilon,
            activation_func=quick_gelu if clip.activation == "quickgelu" else F.gelu,
            hidden_dropout=clip.dropout,
            attention_dropout=clip.dropout,
            tensor_model_parallel_size=execution.layout.tensor,
            sequence_parallel=execution.layout.sequence,
            params_dtype=execution.dtype,
            bf16=execution.precision == "bf16",
            perform_initialization=False,
            use_cpu_initialization=False,
            # Each of these fuses by torch.compile or by CUDA extensions; `training.compile` compiles whole layers.
            bias_dropout_fusion=False,
            bias_activation_fusion=False,
            masked_softmax_fusion=False,
            gradient_accumulation_fusion=False,
            apply_rope_fusion=False,
            deallocate_pipeline_outputs=False,
            cuda_graph_scope=[],  # its own default makes it warn
            **recompute,
        )


def empty(execution: Execution, *shape: int) -> torch.nn.Parameter:
    """A parameter to be filled by `modeling.sharding.fill`."""
    return torch.nn.Parameter(torch.empty(shape, dtype=execution.dtype, device=torch.cuda.current_device()))


def whole_norm(clip: CLIPConfig, execution: Execution, width: int) -> torch.nn.LayerNorm:
    """A norm over whole samples, outside the block."""
    return torch.nn.LayerNorm(width, eps=clip.norm_epsilon, device=torch.cuda.current_device(), dtype=execution.dtype)
