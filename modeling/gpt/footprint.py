"""What one rank holds of a decoder, by formula. The network's own account is `network.describe`."""

from __future__ import annotations

from collections.abc import Iterator

from modeling.footprint import Footprint, Layer, LocalParameter
from modeling.gpt.config import GPTConfig
from modeling.layout import Layout


def footprint(config: GPTConfig, layout: Layout, stage: int, recompute: str) -> Footprint:
    """A rank of pipeline stage `stage`; all its tensor-parallel peers hold as much. Raises ModelError while the
    vocabulary is not known.
    """
    h, s = config.hidden_size, config.sequence_length
    layers = config.num_layers // layout.pipeline
    first, last = stage == 0, stage == layout.pipeline - 1
    layer = Layer(
        hidden=h,
        kv=config.query_groups * config.head_size,
        ffn=config.ffn_size,
        gated=config.activation == "swiglu",
        biases=config.biases,
        norm_bias=config.normalization == "layernorm",
    )
    table = config.padded_vocab_size * h // layout.tensor
    split = s * h / (layout.tensor if layout.sequence else 1)
    summed = layer.summed(s, layers, layout, recompute)
    if layout.tensor > 1:
        summed += s * h * (first + last)  # the embedding's rows forward, the head's input backward
    partial = 0
    if layout.sequence:
        partial = layers * layer.partial + (h * (2 if layer.norm_bias else 1) if last else 0)
        partial += s * h if first and config.positions == "learned" else 0
    return Footprint(
        parameters=tuple(_parameters(config, layer, layout, layers, table, first, last)),
        summed=summed,
        partial=partial,
        boundary=split if layout.pipeline > 1 else 0.0,
        tied=table if config.tie_embeddings and layout.pipeline > 1 and (first or last) else 0,
    )


def _parameters(
    config: GPTConfig, layer: Layer, layout: Layout, layers: int, table: int, first: bool, last: bool
) -> Iterator[LocalParameter]:
    if first:
        yield LocalParameter("embedding.word_embeddings.weight", table, True)
        if config.positions == "learned":
            yield LocalParameter(
                "embedding.position_embeddings.weight", config.sequence_length * config.hidden_size, True
            )
    for number in range(layers):
        yield from layer.parameters(f"decoder.layers.{number}.", layout.tensor)
    if last:
        yield LocalParameter("decoder.final_layernorm.weight", config.hidden_size, False)
        if layer.norm_bias:
            yield LocalParameter("decoder.final_layernorm.bias", config.hidden_size, False)
        if not config.tie_embeddings or layout.pipeline > 1:
            yield LocalParameter("output_layer.weight", table, True)
