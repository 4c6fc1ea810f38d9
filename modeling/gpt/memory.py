"""What one rank of a decoder keeps from forward to backward, by formula."""

from __future__ import annotations

from dataclasses import replace

from modeling.gpt.config import GPTConfig
from modeling.layer_memory import LONGEST, Transformer
from modeling.layout import Layout
from modeling.memory import FP32, Activations, Block, Chunk, Op, Run, Segment

LOGITS_CHUNK = 256
"""Tokens whose logits exist at a time: `modeling.cross_entropy`'s, which imports torch."""
INT64 = 8


def activations(config: GPTConfig, layout: Layout, stage: int, run: Run) -> Activations:
    """Any rank of pipeline stage `stage`. Raises ModelError while the vocabulary is not known."""
    layer = _layer(config, layout)
    stages = layout.pipeline * layout.virtual_pipeline
    layers = config.num_layers // stages
    last_stage = stage == layout.pipeline - 1
    chunks: list[Chunk] = []
    block = layer.block(run)
    for virtual in range(layout.virtual_pipeline):
        first = stage == 0 and virtual == 0
        last = last_stage and virtual == layout.virtual_pipeline - 1
        groups = [(layers, block)]
        if first:
            groups.insert(0, (1, _embedding(config, layout, layer, run)))
        if last:
            groups.append((1, _head(config, layout, layer, run)))
        extra = 0.0 if last else layer.stream(run)  # what is sent on stays until its gradient comes back
        if not first and layer.rms and run.device == "cpu" and run.recompute != "full":
            extra += layer.stream(run)  # what was received, which nothing saves
        chunks.append(Chunk(tuple(groups), extra + _positions(config, run)))
    tokens = layer.tokens(run)
    rows = config.multiplied_rows(layout.tensor)
    rotary = config.sequence_length * config.head_size * FP32 if config.positions == "rotary" else 0.0
    gathered = tokens * config.hidden_size * run.element if layout.sequence else 0.0
    part = min(tokens, LOGITS_CHUNK)
    if run.element < FP32:
        each = run.element + FP32  # as the product gives them, and in fp32
    else:
        each = FP32 * (2 if tokens > LOGITS_CHUNK else 1)  # the chunk before is there until the next has its name
    return Activations(
        chunks=tuple(chunks),
        logits=tokens * rows * run.element if last_stage else 0.0,
        logits_work=part * rows * each if last_stage else 0.0,
        buffers=rotary + _masks(config, run) + gathered,
        inputs=run.samples * (config.sequence_length + 1) * INT64 * (2 if run.documents else 1),
        handed=layer.stream(run) if stage > 0 and layout.virtual_pipeline == 1 else 0.0,
    )


def _positions(config: GPTConfig, run: Run) -> float:
    """Bytes of positions and, where documents are kept apart, of the mask that all layers add to their scores: of dense
    layers, and of banded ones.
    """
    s = config.sequence_length
    if not run.documents:
        return INT64 * s
    kinds = 2 if config.attention == "alternating" else 1
    return run.samples * s * (INT64 + s * kinds * run.element)


def _masks(config: GPTConfig, run: Run) -> float:
    """Bytes of masks that all layers share: of banded ones, and on a CPU of attention in blocks."""
    banded = config.attention == "alternating" and config.sequence_length > config.attention_band
    blocks = run.device == "cpu" and run.element < FP32 and 1 < config.sequence_length <= LONGEST
    return config.sequence_length**2 * run.element * (banded + blocks)


def _layer(config: GPTConfig, layout: Layout) -> Transformer:
    return Transformer(
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv=config.query_groups * config.head_size,
        ffn=config.ffn_size,
        positions=config.sequence_length,
        tensor=layout.tensor,
        sequence=layout.sequence,
        gated=config.activation == "swiglu",
        rms=config.normalization == "rmsnorm",
        rotary=config.positions == "rotary",
        dropout=config.dropout > 0,
    )


def _embedding(config: GPTConfig, layout: Layout, layer: Transformer, run: Run) -> Block:
    stream = layer.stream(run)
    whole = layer.tokens(run) * config.hidden_size * run.element
    table = config.padded_vocab_size * config.hidden_size / layout.tensor
    ops = [Op(weight=table, work=whole)]
    if config.positions == "learned":
        ops.append(Op(weight=config.sequence_length * config.hidden_size, work=whole))
    if layer.dropout:
        ops.append(layer.mask(run))
    return Block((Segment(tuple(ops)),), stream)


def _head(config: GPTConfig, layout: Layout, layer: Transformer, run: Run) -> Block:
    """The last norm, and the loss: its hidden states, whole on every rank, labels, and losses in fp32."""
    tokens = layer.tokens(run)
    whole = tokens * config.hidden_size * run.element
    table = config.padded_vocab_size * config.hidden_size / layout.tensor
    wide = tokens * config.hidden_size * FP32
    loss = Op(
        saved=whole + tokens * (INT64 + FP32),
        into=whole,
        weight=table,
        work=2 * wide if run.element < FP32 else wide,
        waits=config.tie_embeddings and layout.pipeline == 1,
    )
    return Block((Segment((replace(layer.norm(run), joins=False), loss)),))
