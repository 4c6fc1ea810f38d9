"""Megatron Core's transformer layers as every family uses them: our attention, norms and linear layers in its spec, its
config with everything off that needs CUDA extensions, and where tensor parallelism divides a layer's parameters.
"""

from __future__ import annotations

import warnings
from typing import Any

from modeling import megatron_bridge  # isort: skip  (the bridge first: it keeps Megatron Core's imports quiet)

import torch
from megatron.core import tensor_parallel
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from modeling.execution import Execution
from modeling.linear import ColumnParallelLinear, RowParallelLinear

megatron_bridge.prepare()

SPLIT = {
    "linear_qkv.weight": 0,
    "linear_qkv.bias": 0,
    "linear_proj.weight": 1,
    "linear_fc1.weight": 0,
    "linear_fc1.bias": 0,
    "linear_fc2.weight": 1,
}
"""Megatron Core's names end in these; the second entry is the dimension that tensor parallelism divides."""


def layer_spec(*, norm: type[torch.nn.Module], attention: Any, mask: AttnMaskType, ffn_size: int) -> ModuleSpec:
    """One pre-norm layer in Megatron Core's terms; `attention` is the core between the two projections."""
    self_attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": mask},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear, core_attention=attention, linear_proj=RowParallelLinear
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
            input_layernorm=norm,
            self_attention=self_attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
        ),
    )


def transformer_config(execution: Execution, *, dropout: float, **shape: Any) -> TransformerConfig:
    """Megatron Core's config of a family's `shape` and an execution; it allocates, and we initialise."""
    layout = execution.layout
    recompute: dict[str, Any] = {}
    if execution.recompute == "full":
        recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    elif execution.recompute == "selective":
        # The attention core as in Korthikanti et al. 2022, section 5, and the MLP, whose activations are the largest.
        recompute = {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "mlp"]}
    with warnings.catch_warnings():
        # Recomputing core attention would be a waste with Transformer Engine's fused one; ours it is meant for.
        warnings.filterwarnings(
            "ignore", message="If you are using transformer_engine as the transformer implementation"
        )
        return TransformerConfig(
            **shape,
            hidden_dropout=dropout,
            attention_dropout=dropout,
            tensor_model_parallel_size=layout.tensor,
            pipeline_model_parallel_size=layout.pipeline,
            virtual_pipeline_model_parallel_size=layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
            sequence_parallel=layout.sequence,
            pipeline_dtype=execution.dtype,
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
            batch_p2p_comm=False,
            deallocate_pipeline_outputs=False,
            cuda_graph_scope=[],  # its own default makes it warn
            **recompute,
        )


def mark_tensor_parallel(parameter: torch.nn.Parameter, axis: int | None) -> None:
    """Megatron Core sets these only when it initialises; without them gradient norms are silently wrong."""
    if not hasattr(parameter, "tensor_model_parallel"):
        if axis is None:
            tensor_parallel.set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
        else:
            tensor_parallel.set_tensor_model_parallel_attributes(parameter, True, axis, 1)
