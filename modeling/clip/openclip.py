"""Weights and config to and from open_clip's files (`open_clip_config.json`, `open_clip_model.safetensors`).

A folder with both is what its `create_model("local-dir:FOLDER")` loads and its push to the Hugging Face hub writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from modeling.clip.config import RESNET50_BLOCKS, CLIPConfig
from modeling.clip.conversion import (
    FREE,
    LayerNames,
    Rule,
    export_by,
    import_by,
    layer_rules,
    norm_rules,
    patch_embedding,
    require,
    same,
    scale_and_bias,
)
from modeling.clip.flops import convolutions
from modeling.errors import ModelError

__all__ = ["FREE", "export_tensors", "from_hf_config", "import_tensors", "to_hf_config"]

MODELS = "CLIP of open_clip"
CONFIG_FILE = "open_clip_config.json"
BESIDE = ()
WEIGHTS = "open_clip_model"

_LAYER = LayerNames(
    norm_1="ln_1",
    norm_2="ln_2",
    qkv=("attn.in_proj",),
    qkv_separator="_",
    out="attn.out_proj",
    fc1="mlp.c_fc",
    fc2="mlp.c_proj",
)


def recognises(theirs: Mapping[str, Any]) -> bool:
    """Whether a config has the form of an `open_clip_config.json`."""
    return "vision_cfg" in (theirs.get("model_cfg") or {})


def export_tensors(config: CLIPConfig, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The state dict of open_clip's CLIP, one of our tensors at a time.

    read: our global tensor by its name in `network.describe`. A ResNet's counters of batches are left out, which torch
    fills in.
    """
    return export_by(_rules(config), read)


def import_tensors(config: CLIPConfig, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our global tensors from open_clip's state dict, one at a time.

    read: a tensor by its name; raises KeyError for a name that is not there. Raises ModelError as
    `conversion.import_by`.
    """
    return import_by(_rules(config), read, config)


def _rules(config: CLIPConfig) -> Iterator[Rule]:
    t, e = config.text_width, config.embed_dim
    yield from scale_and_bias(config, bias=True)
    yield from _vit(config) if config.vision == "vit" else _resnet(config)
    yield same("text.token_embedding", (config.vocabulary, t), "token_embedding.weight")
    yield same("text.position_embedding", (config.context_length, t), "positional_embedding")
    for i in range(config.text_layers):
        names = f"text.transformer.layers.{i}", f"transformer.resblocks.{i}"
        yield from layer_rules(*names, t, config.text_heads, _LAYER)
    yield from norm_rules("text.norm_after", t, "ln_final")
    yield same("text.projection", (t, e), "text_projection")


def _vit(config: CLIPConfig) -> Iterator[Rule]:
    v, e = config.vision_width, config.embed_dim
    yield patch_embedding(config, "visual.conv1.weight")
    yield same("vision.class_embedding", (v,), "visual.class_embedding")
    table = (config.patches + 1, v)
    yield same("vision.position_embedding", table, "visual.positional_embedding", positions=True)
    yield from norm_rules("vision.norm_before", v, "visual.ln_pre")
    for i in range(config.vision_layers):
        names = f"vision.transformer.layers.{i}", f"visual.transformer.resblocks.{i}"
        yield from layer_rules(*names, v, config.vision_heads, _LAYER)
    yield from norm_rules("vision.norm_after", v, "visual.ln_post")
    yield same("vision.projection", (v, e), "visual.proj")


def _resnet(config: CLIPConfig) -> Iterator[Rule]:
    shapes = ((out, into, kernel, kernel) for into, out, kernel, _ in convolutions(config))

    def convolution(ours: str, theirs: str, our_norm: str, their_norm: str) -> Iterator[Rule]:
        shape = next(shapes)
        yield same(f"vision.{ours}.weight", shape, f"visual.{theirs}.weight")
        for kind in ("weight", "bias", "running_mean", "running_var"):
            yield same(f"vision.{our_norm}.{kind}", shape[:1], f"visual.{their_norm}.{kind}")

    for i in (1, 2, 3):
        yield from convolution(f"conv{i}", f"conv{i}", f"norm{i}", f"bn{i}")
    for stage, blocks in enumerate(RESNET50_BLOCKS):
        for block in range(blocks):
            ours, theirs = f"stages.{stage}.{block}", f"layer{stage + 1}.{block}"
            for i in (1, 2, 3):
                yield from convolution(f"{ours}.conv{i}", f"{theirs}.conv{i}", f"{ours}.norm{i}", f"{theirs}.bn{i}")
            if block == 0:
                there = f"{theirs}.downsample"
                yield from convolution(f"{ours}.shortcut", f"{there}.0", f"{ours}.shortcut_norm", f"{there}.1")
    w = 32 * config.vision_width
    table = (config.patches + 1, w)
    yield same("vision.pool.position_embedding", table, "visual.attnpool.positional_embedding", positions=True)
    for ours, theirs, out in (
        ("query", "q_proj", w),
        ("key", "k_proj", w),
        ("value", "v_proj", w),
        ("projection", "c_proj", config.embed_dim),
    ):
        yield same(f"vision.pool.{ours}.weight", (out, w), f"visual.attnpool.{theirs}.weight")
        yield same(f"vision.pool.{ours}.bias", (out,), f"visual.attnpool.{theirs}.bias")


def to_hf_config(config: CLIPConfig, *, eod_id: int | None = None) -> dict[str, Any]:
    """The contents of `open_clip_config.json`. Captions are read at their largest token, whatever `eod_id` is.

    Dropout cannot be said there, and is left out.
    """
    norm = {} if config.norm_epsilon == 1e-5 else {"norm_kwargs": {"eps": config.norm_epsilon}}
    if config.vision == "vit":
        vision: dict[str, Any] = {
            "layers": config.vision_layers,
            "patch_size": config.patch_size,
            "head_width": config.vision_width // config.vision_heads,
            "patch_dropout": config.patch_dropout,
        } | norm
    else:
        vision = {
            "layers": list(RESNET50_BLOCKS),
            "patch_size": None,
            "head_width": 32 * config.vision_width // config.vision_heads,
        }
    model: dict[str, Any] = {
        "embed_dim": config.embed_dim,
        "quick_gelu": config.activation == "quickgelu",
        "vision_cfg": {"image_size": config.image_size, "width": config.vision_width} | vision,
        "text_cfg": {
            "context_length": config.context_length,
            "vocab_size": config.vocabulary,
            "width": config.text_width,
            "heads": config.text_heads,
            "layers": config.text_layers,
        }
        | norm,
    }
    if config.loss == "sigmoid":
        model["init_logit_bias"] = config.initial_bias
    return {
        "model_cfg": model,
        "preprocess_cfg": {
            "mean": list(config.image_mean),
            "std": list(config.image_std),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def other_files(config: CLIPConfig) -> dict[str, dict[str, Any]]:
    """What else lies beside the weights: nothing."""
    return {}


_COMPUTED = {
    "vision_cfg": {
        "image_size", "width", "layers", "patch_size", "head_width", "patch_dropout", "norm_kwargs", "mlp_ratio"
    },
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "norm_kwargs", "mlp_ratio"},
}  # fmt: skip
_HARMLESS = {"hf_tokenizer_name", "tokenizer_kwargs", "hf_model_name", "hf_model_pretrained", "output_tokens"}


def from_hf_config(theirs: Mapping[str, Any]) -> CLIPConfig:
    """Our config from the contents of an `open_clip_config.json`.

    Raises ModelError: a variant that Trestle does not compute, naming the key.
    """
    if not recognises(theirs):
        raise ModelError(f"{CONFIG_FILE} has no model_cfg.vision_cfg; it is not of a CLIP")
    model = theirs["model_cfg"]
    vision, text = model["vision_cfg"], model.get("text_cfg") or {}
    for section, keys in (("vision_cfg", vision), ("text_cfg", text)):
        for key, value in keys.items():
            if key not in _COMPUTED[section] | _HARMLESS and value not in (None, False):
                raise ModelError(f"{CONFIG_FILE}: {section}.{key} {value!r} cannot be imported")
        require(keys, f"{CONFIG_FILE}: {section}", "mlp_ratio", 4.0, 4)
    epsilon = (vision.get("norm_kwargs") or {}).get("eps", 1e-5)
    resnet = isinstance(vision.get("layers", 12), list)
    if resnet:
        require(vision, f"{CONFIG_FILE}: vision_cfg", "layers", list(RESNET50_BLOCKS))
        epsilon = (text.get("norm_kwargs") or {}).get("eps", 1e-5)
    elif (text.get("norm_kwargs") or {}).get("eps", 1e-5) != epsilon:
        raise ModelError(f"{CONFIG_FILE}: vision_cfg and text_cfg differ in norm_kwargs.eps")
    width, head = vision.get("width", 64 if resnet else 768), vision.get("head_width", 64)
    shape = CLIPConfig()
    pictures = theirs.get("preprocess_cfg") or {}
    config = CLIPConfig(
        embed_dim=model["embed_dim"],
        image_size=vision.get("image_size", 224),
        vision="resnet50" if resnet else "vit",
        vision_layers=shape.vision_layers if resnet else vision.get("layers", 12),
        vision_width=width,
        vision_heads=(32 * width if resnet else width) // head,
        patch_size=shape.patch_size if resnet else vision.get("patch_size", 16),
        patch_dropout=vision.get("patch_dropout") or 0.0,
        context_length=text.get("context_length", 77),
        vocab_size=text.get("vocab_size", 49408),
        text_layers=text.get("layers", 12),
        text_width=text.get("width", 512),
        text_heads=text.get("heads", 8),
        activation="quickgelu" if model.get("quick_gelu") else "gelu",
        norm_epsilon=epsilon,
        loss="sigmoid" if model.get("init_logit_bias") is not None else "clip",
        image_mean=tuple(pictures.get("mean", shape.image_mean)),
        image_std=tuple(pictures.get("std", shape.image_std)),
    )
    config.check()
    return config
