"""The decoder: Megatron Core's GPTModel over our own spec, and where each of its parameters belongs globally."""

from __future__ import annotations

import math
from typing import Any

from modeling import groups, megatron_bridge  # isort: skip  (the bridge first: it keeps Megatron Core's imports quiet)

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from modeling import document_masks, transformer
from modeling.attention import CausalAttention
from modeling.cross_entropy import linear_cross_entropy
from modeling.execution import Execution, allow_compiled_variants
from modeling.gelu import gelu_tanh
from modeling.gpt.config import GPTConfig
from modeling.gpt.objective import forward_step
from modeling.norms import NORMS
from modeling.sharding import Shard, fill

__all__ = ["GPT", "build", "describe", "forward_step"]


class GPT(GPTModel):
    """One pipeline chunk of the decoder.

    Called with tokens `[b, s]`, positions `[b, s]` and labels `[b, s]` it returns, on the last stage, each token's
    loss in nats `[b, s]` (fp32); without labels the logits `[b, s, vocab]`, or with an inference context those of the
    last position `[b, 1, vocab]`; on other stages the hidden states `[s, b, h]`. With `documents` `[b, s]`, the number
    of each token's document, attention does not cross their borders.
    """

    def __init__(self, gpt: GPTConfig, execution: Execution, *, chunk: int | None) -> None:
        where: dict[str, Any] = {} if chunk is None else {"ignore_virtual": False, "vp_stage": chunk}
        config = transformer_config(gpt, execution)
        layers = gpt.num_layers // (execution.layout.pipeline * execution.layout.virtual_pipeline)
        norm = NORMS[gpt.normalization]
        # The constructor calls setup_embeddings_and_output_layer, which needs these; Module allows plain ones early.
        object.__setattr__(self, "gpt", gpt)
        object.__setattr__(self, "execution", execution)
        super().__init__(
            config,
            TransformerBlockSubmodules(layer_specs=[layer_spec(gpt)] * layers, layer_norm=norm),
            vocab_size=gpt.padded_vocab_size,
            max_sequence_length=gpt.sequence_length,
            pre_process=parallel_state.is_pipeline_first_stage(**where),
            post_process=parallel_state.is_pipeline_last_stage(**where),
            share_embeddings_and_output_weights=gpt.tie_embeddings,
            position_embedding_type="rope" if gpt.positions == "rotary" else "learned_absolute",
            rotary_base=gpt.rotary_base,
            vp_stage=chunk,
        )

    def setup_embeddings_and_output_layer(self) -> None:
        """Mark what is shared. Megatron Core also makes tied copies equal by an all-reduce; ours start equal."""
        tied_over_stages = self.gpt.tie_embeddings and self.config.pipeline_model_parallel_size > 1
        if self.pre_process:
            self.embedding.word_embeddings.weight.shared_embedding = tied_over_stages
        elif self.post_process and tied_over_stages:
            self.output_layer.weight.shared_embedding = True

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        documents: torch.Tensor | None = None,
        **others: Any,
    ) -> torch.Tensor:
        if documents is not None:
            # Once for all layers, which Megatron Core hands it to, recomputed ones as well.
            band = next((band for band in self.gpt.band_of_layer() if band is not None), None)
            attention_mask = document_masks.attention_mask(documents, band, self.config.params_dtype)
        output: torch.Tensor = super().forward(tokens, positions, attention_mask, **others)
        return output

    def _postprocess(
        self,
        hidden_states: torch.Tensor,
        *,
        labels: torch.Tensor | None = None,
        inference_context: Any = None,
        **_: Any,
    ) -> torch.Tensor:
        if not self.post_process:
            return hidden_states
        weight = self.shared_embedding_or_output_weight() if self.gpt.tie_embeddings else self.output_layer.weight
        group = groups.tensor_group()
        if self.config.sequence_parallel:
            hidden = tensor_parallel.gather_from_sequence_parallel_region(hidden_states, group=group)
        else:
            hidden = tensor_parallel.copy_to_tensor_model_parallel_region(hidden_states, group=group)
        if labels is None:
            if inference_context is not None:
                hidden = hidden[-1:]  # the next token's logits are all that generation asks for
            logits = tensor_parallel.gather_from_tensor_model_parallel_region(F.linear(hidden, weight), group=group)
            return logits[..., : self.gpt.vocabulary].transpose(0, 1)
        s, b, h = hidden.shape
        losses = linear_cross_entropy(
            hidden.reshape(s * b, h),
            weight,
            labels.t().reshape(-1),
            vocab_size=self.gpt.vocabulary,
            group=group,
            compiled=self.execution.compile,
        )
        return losses.view(s, b).t()


def layer_spec(gpt: GPTConfig) -> ModuleSpec:
    """One transformer layer in Megatron Core's terms."""
    return transformer.layer_spec(
        norm=NORMS[gpt.normalization], attention=_core_attention(gpt), mask=AttnMaskType.causal, ffn_size=gpt.ffn_size
    )


def _core_attention(gpt: GPTConfig) -> Any:
    bands = gpt.band_of_layer()

    def build(**kwargs: Any) -> CausalAttention:
        return CausalAttention(band_of_layer=bands, length=gpt.sequence_length, **kwargs)

    return build


def transformer_config(gpt: GPTConfig, execution: Execution) -> TransformerConfig:
    """Our two configs in Megatron Core's terms."""
    swiglu = gpt.activation == "swiglu"
    return transformer.transformer_config(
        execution,
        dropout=gpt.dropout,
        num_layers=gpt.num_layers,
        hidden_size=gpt.hidden_size,
        num_attention_heads=gpt.num_attention_heads,
        num_query_groups=gpt.query_groups,
        ffn_hidden_size=gpt.ffn_size,
        normalization="RMSNorm" if gpt.normalization == "rmsnorm" else "LayerNorm",
        layernorm_epsilon=gpt.norm_epsilon,
        activation_func=F.silu if swiglu else gelu_tanh,
        gated_linear_unit=swiglu,
        add_bias_linear=gpt.biases,
    )


def build(gpt: GPTConfig, execution: Execution) -> list[GPT]:
    """This rank's chunks of the model with their initial weights; the process groups must have been started."""
    gpt.check()
    gpt.check_layout(execution.layout)
    execution.check(gpt.dropout)
    megatron_bridge.prepare()
    virtual = execution.layout.virtual_pipeline
    chunks = [GPT(gpt, execution, chunk=i if virtual > 1 else None) for i in range(virtual)]
    for chunk in chunks:
        chunk.to(device=torch.cuda.current_device(), dtype=execution.dtype)
        shards = describe(chunk)
        for name, parameter in chunk.named_parameters():
            if parameter.device.type != "meta":
                fill(parameter, shards[name], execution.seed)
        if execution.compile:
            # All layers share one compiled function: a variant for each of grad or not, banded or not and each size of
            # micro-batch.
            allow_compiled_variants()
            for layer in chunk.decoder.layers:
                layer.forward = torch.compile(layer.forward, fullgraph=True, dynamic=False)
    return chunks


def describe(chunk: GPT) -> dict[str, Shard]:
    """The global place of each local parameter, and the tensor-parallel marks that its gradient's norm depends on.

    Keys are the names of `chunk.named_parameters()`.
    """
    return {name: _describe(chunk, name, parameter) for name, parameter in chunk.named_parameters()}


_SPLIT = {"word_embeddings.weight": 0, "output_layer.weight": 0, **transformer.SPLIT}


def _describe(chunk: GPT, name: str, parameter: torch.nn.Parameter) -> Shard:
    gpt, tensor = chunk.gpt, chunk.execution.layout.tensor
    rank = parallel_state.get_tensor_model_parallel_rank()
    axis = next((axis for ending, axis in _SPLIT.items() if name.endswith(ending)), None)
    transformer.mark_tensor_parallel(parameter, axis)
    local = tuple(parameter.shape)
    global_shape, offset, shape = list(local), [0] * len(local), list(local)
    if axis is not None:
        global_shape[axis] *= tensor
        offset[axis] = rank * local[axis]
    if name.endswith(("word_embeddings.weight", "output_layer.weight")):
        # Rows beyond the vocabulary are padding, and exist nowhere but here.
        global_shape[0] = gpt.vocabulary
        shape[0] = max(0, min(local[0], gpt.vocabulary - offset[0]))
        offset[0] = min(offset[0], gpt.vocabulary)
    elif "linear_fc1" in name and gpt.activation == "swiglu":
        # Each rank holds [its gate rows; its up rows]: a box of the [2, f, h] tensor, not of [2 f, h].
        rows = local[0] // 2
        global_shape = [2, rows * tensor, *local[1:]]
        offset, shape = [0, rank * rows] + [0] * (len(local) - 1), [2, rows, *local[1:]]
    matrix = parameter.ndim > 1
    into_residual = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
    scale = 1.0 / math.sqrt(2.0 * gpt.num_layers) if into_residual else 1.0
    return Shard(
        name=_global_name(chunk, name),
        global_shape=tuple(global_shape),
        offset=tuple(offset),
        shape=tuple(shape),
        local_numel=parameter.numel(),
        # GPT-2's scheme: N(0, 0.02²) for matrices, projections into the residual stream scaled down with depth.
        initial=gpt.initializer_std * scale if matrix else (1.0 if "norm" in name and name.endswith("weight") else 0.0),
        normal=matrix,
        decay=matrix,
        replicas=1 if axis is not None else tensor,
        replica=0 if axis is not None else rank,
        tied_copy=gpt.tie_embeddings and name == "output_layer.weight",
    )


def _global_name(chunk: GPT, name: str) -> str:
    """Megatron Core numbers layers within the chunk; globally they are numbered within the model."""
    if name == "output_layer.weight" and chunk.gpt.tie_embeddings:
        return "embedding.word_embeddings.weight"
    prefix = "decoder.layers."
    if not name.startswith(prefix):
        return name
    local, rest = name[len(prefix) :].split(".", 1)
    return f"{prefix}{chunk.decoder.layers[int(local)].layer_number - 1}.{rest}"
