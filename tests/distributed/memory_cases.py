"""Recipes at toy size in every layout, for comparing a rank's memory by formula with what real steps take.

Big enough that activations and logits weigh as much as weights do, and that no constant of a few kilobytes decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

GPT: dict[str, Any] = {
    "family": "gpt", "num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "sequence_length": 128,
    "vocab_size": 1000,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    **GPT, "tie_embeddings": False, "positions": "rotary", "normalization": "rmsnorm", "activation": "swiglu",
    "num_query_groups": 2, "biases": False, "ffn_hidden_size": 160,
}  # fmt: skip
WIDE = {"num_layers": 2, "hidden_size": 192}
"""With matrices above the size from which on ZeRO 3 divides them."""
VIT: dict[str, Any] = {
    "family": "clip", "image_size": 64, "patch_size": 8, "vision_layers": 3, "vision_width": 64, "vision_heads": 4,
    "embed_dim": 64, "text_layers": 3, "text_width": 64, "text_heads": 4, "context_length": 48, "vocab_size": 500,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "tied": GPT,
    "untied": {**GPT, "tie_embeddings": False},
    "llama": LLAMA,
    "tied wide": {**GPT, **WIDE},
    "llama wide": {**LLAMA, **WIDE, "ffn_hidden_size": 512},
    "dropout": {**GPT, "dropout": 0.1},
    "banded": {**GPT, "attention": "alternating", "attention_band": 32},
    "rotary": {**LLAMA, "num_query_groups": None},
    "long": {**GPT, "num_layers": 2, "sequence_length": 320},
    "vit": VIT,
    "lit": {**VIT, "lock_image": True},
    "siglip": {**VIT, "loss": "sigmoid"},
    "resnet": {**VIT, "vision": "resnet50", "vision_width": 8},
}
MICRO_BATCH_SIZE = {"gpt": 2, "clip": 8}

Case = dict[str, Any]
"""{model, layout: the recipe's parallel section, precision, recompute, micro_batches}."""


def case(
    model: str,
    zero: int,
    precision: str,
    *,
    recompute: str = "none",
    micro_batches: int = 4,
    compile: bool = False,
    documents: bool = False,
    **layout: Any,
) -> Case:
    return {
        "model": model,
        "layout": {**layout, "zero_stage": zero},
        "precision": precision,
        "recompute": recompute,
        "micro_batches": micro_batches,
        "compile": compile,
        "documents": documents,
    }


def scaled(model: dict[str, Any], scale: int) -> dict[str, Any]:
    """A model whose widths, sequence and vocabulary are `scale` times as large: on a GPU kernels' workspaces and the
    allocator's rounding would decide over toys. Heads stay 64 wide at most; pictures and captions as long as they are.
    """
    sizes = ("hidden_size", "ffn_hidden_size", "sequence_length", "attention_band", "vocab_size", "vision_width",
             "text_width", "embed_dim")  # fmt: skip
    heads = ("num_attention_heads", "num_query_groups", "vision_heads", "text_heads")
    grown = {key: value * scale if key in sizes and value else value for key, value in model.items()}
    return {key: value * max(1, scale // 4) if key in heads and value else value for key, value in grown.items()}


def document_of(case: Case, world_size: int, scale: int = 1) -> dict[str, Any]:
    """The recipe of a case, as plain values."""
    model, layout = scaled(MODELS[case["model"]], scale), case["layout"]
    replicas = world_size // (layout.get("tensor", 1) * layout.get("pipeline", 1))
    size = MICRO_BATCH_SIZE[model["family"]]
    return {
        "model": model,
        "data": {"document_masks": case["documents"]},
        "batch": {"global_batch_size": replicas * size * case["micro_batches"], "micro_batch_size": size},
        "parallel": layout,
        "training": {"precision": case["precision"], "recompute": case["recompute"], "compile": case["compile"]},
    }


TP, SP, PP = {"tensor": 2}, {"tensor": 2, "sequence": True}, {"pipeline": 2}
VPP = {"pipeline": 2, "virtual_pipeline": 2}
ENGINES = ((0, "fp32"), (1, "fp32"), (1, "bf16"))
"""(ZeRO stage, precision) that go with any layout."""


def cases(world_size: int) -> list[Case]:
    """What is tried on so many ranks."""
    return list({1: _alone, 2: _pairs, 4: _fours}[world_size]())


def _alone() -> Iterator[Case]:
    for zero, precision in ENGINES:
        for model in ("tied", "llama"):
            for recompute in ("none", "selective", "full"):
                yield case(model, zero, precision, recompute=recompute, micro_batches=3)
        yield case("untied", zero, precision, micro_batches=3)
    for zero, precision in ENGINES:
        yield case("tied", zero, precision, micro_batches=1)
    for zero in (2, 3):
        for precision in ("fp32", "bf16"):
            yield case("tied wide", zero, precision, micro_batches=2)
            yield case("tied", zero - 1, precision, micro_batches=2, offload_optimizer=True)
    for precision in ("fp32", "bf16"):
        yield case("dropout", 1, precision)
        yield case("banded", 1, precision)
        yield case("rotary", 1, precision, micro_batches=2)
        yield case("banded", 1, precision, micro_batches=2, documents=True)
        yield case("long", 1, precision, micro_batches=2)
        yield case("vit", 1, precision, micro_batches=1)
        yield case("vit", 1, precision, micro_batches=3)
        yield case("lit", 1, precision, micro_batches=2)
    yield case("siglip", 0, "fp32", micro_batches=2)
    yield case("vit", 1, "bf16", recompute="selective", micro_batches=2)
    yield case("vit", 1, "bf16", recompute="full", micro_batches=2)
    yield case("resnet", 0, "fp32", micro_batches=2)


def _pairs() -> Iterator[Case]:
    for layout in (TP, SP, PP, VPP):
        for zero, precision in ENGINES:
            yield case("tied", zero, precision, **layout)
        yield case("llama", 0, "fp32", **layout)
        yield case("llama", 1, "bf16", **layout)
        for recompute in ("selective", "full"):
            yield case("tied", 1, "bf16", recompute=recompute, **layout)
            yield case("llama", 0, "fp32", recompute=recompute, **layout)
    for layout in (TP, PP):
        yield case("untied", 1, "bf16", **layout)
    for layout in (PP, VPP):
        yield case("tied", 1, "bf16", micro_batches=2, **layout)
    yield case("tied", 1, "bf16", micro_batches=1, **PP)
    for zero, precision in (*ENGINES, (2, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16")):
        yield case("tied wide", zero, precision, micro_batches=2)
        yield case("llama wide", zero, precision, micro_batches=1)
    yield case("vit", 1, "bf16", micro_batches=2)
    yield case("vit", 1, "fp32", micro_batches=2, **TP)
    yield case("vit", 1, "bf16", micro_batches=1, **SP)
    yield case("resnet", 1, "fp32", micro_batches=2)


def _fours() -> Iterator[Case]:
    for zero, precision in ENGINES:
        for model in ("tied", "llama"):
            yield case(model, zero, precision, tensor=2, pipeline=2)
            yield case(model, zero, precision, **SP)
            yield case(model, zero, precision, **PP)
        yield case("tied", zero, precision, pipeline=4)
        yield case("tied", zero, precision, micro_batches=8, pipeline=2, virtual_pipeline=2)
    yield case("llama", 1, "bf16", tensor=2, sequence=True, pipeline=2, virtual_pipeline=2)
    yield case("untied", 1, "bf16", tensor=4)
    for zero in (2, 3):
        yield case("tied wide", zero, "bf16", micro_batches=2, **TP)
        yield case("tied wide", zero, "bf16", micro_batches=2)
