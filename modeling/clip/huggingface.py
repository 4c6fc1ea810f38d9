"""Weights and config to and from transformers' CLIPModel, tensor by tensor; reading and writing files is another's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from modeling.clip.config import CLIPConfig
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
    transposed,
)
from modeling.errors import ModelError

__all__ = ["FREE", "export_tensors", "from_hf_config", "import_tensors", "to_hf_config"]

MODELS = "CLIP of transformers"
CONFIG_FILE = "config.json"
PREPROCESSING = "preprocessor_config.json"
BESIDE = (PREPROCESSING,)
WEIGHTS = "model"

_LAYER = LayerNames(
    norm_1="layer_norm1",
    norm_2="layer_norm2",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    qkv_separator=".",
    out="self_attn.out_proj",
    fc1="mlp.fc1",
    fc2="mlp.fc2",
)
_ACTIVATIONS = {"quickgelu": "quick_gelu", "gelu": "gelu"}


def recognises(theirs: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a CLIPModel."""
    return theirs.get("model_type") == "clip"


def export_tensors(config: CLIPConfig, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The state dict of transformers' CLIPModel, one of our tensors at a time.

    read: our global tensor by its name in `network.describe`. Raises ModelError: CLIPModel has no such image tower.
    """
    _check(config)
    return export_by(_rules(config), read)


def import_tensors(config: CLIPConfig, read_hf: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our global tensors from transformers' state dict, one at a time.

    read_hf: a tensor by its name; raises KeyError for a name that is not there. Raises ModelError as
    `conversion.import_by`.
    """
    _check(config)
    return import_by(_rules(config), read_hf, config)


def _check(config: CLIPConfig) -> None:
    if config.vision != "vit":
        raise ModelError(
            f"transformers' CLIPModel has no {config.vision} image tower; use --to openclip for this model"
        )


def _rules(config: CLIPConfig) -> Iterator[Rule]:
    v, t, e = config.vision_width, config.text_width, config.embed_dim
    yield from scale_and_bias(config, bias=False)
    theirs = "vision_model.embeddings"
    yield patch_embedding(config, f"{theirs}.patch_embedding.weight")
    yield same("vision.class_embedding", (v,), f"{theirs}.class_embedding")
    table = (config.patches + 1, v)
    yield same("vision.position_embedding", table, f"{theirs}.position_embedding.weight", positions=True)
    yield from norm_rules("vision.norm_before", v, "vision_model.pre_layrnorm")
    for i in range(config.vision_layers):
        names = f"vision.transformer.layers.{i}", f"vision_model.encoder.layers.{i}"
        yield from layer_rules(*names, v, config.vision_heads, _LAYER)
    yield from norm_rules("vision.norm_after", v, "vision_model.post_layernorm")
    yield transposed("vision.projection", (v, e), "visual_projection.weight")
    theirs = "text_model.embeddings"
    yield same("text.token_embedding", (config.vocabulary, t), f"{theirs}.token_embedding.weight")
    yield same("text.position_embedding", (config.context_length, t), f"{theirs}.position_embedding.weight")
    for i in range(config.text_layers):
        names = f"text.transformer.layers.{i}", f"text_model.encoder.layers.{i}"
        yield from layer_rules(*names, t, config.text_heads, _LAYER)
    yield from norm_rules("text.norm_after", t, "text_model.final_layer_norm")
    yield transposed("text.projection", (t, e), "text_projection.weight")


def to_hf_config(config: CLIPConfig, *, eod_id: int | None = None) -> dict[str, Any]:
    """The contents of config.json; `eod_id` is the token that ends a caption, by default the vocabulary's last.

    CLIPModel has no dropout but on attention weights, so that alone is carried over, and no bias of a sigmoid loss.
    Raises ModelError: CLIPModel has no such image tower.
    """
    _check(config)
    end = config.vocabulary - 1 if eod_id is None else eod_id
    common = {
        "hidden_act": _ACTIVATIONS[config.activation],
        "layer_norm_eps": config.norm_epsilon,
        "attention_dropout": config.dropout,
        "projection_dim": config.embed_dim,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": config.initial_log_scale,
        "text_config": common
        | {
            "model_type": "clip_text_model",
            "vocab_size": config.vocabulary,
            "hidden_size": config.text_width,
            "intermediate_size": 4 * config.text_width,
            "num_hidden_layers": config.text_layers,
            "num_attention_heads": config.text_heads,
            "max_position_embeddings": config.context_length,
            "bos_token_id": end - 1,
            "eos_token_id": end,
            "pad_token_id": 0,
        },
        "vision_config": common
        | {
            "model_type": "clip_vision_model",
            "hidden_size": config.vision_width,
            "intermediate_size": 4 * config.vision_width,
            "num_hidden_layers": config.vision_layers,
            "num_attention_heads": config.vision_heads,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
        },
    }


def other_files(config: CLIPConfig) -> dict[str, dict[str, Any]]:
    """What else lies beside the weights: how CLIPImageProcessor makes a picture of ours."""
    size = config.image_size
    return {
        PREPROCESSING: {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": size},
            "resample": 3,  # bicubic
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
            "do_rescale": True,
            "do_normalize": True,
            "do_convert_rgb": True,
            "image_mean": list(config.image_mean),
            "image_std": list(config.image_std),
        }
    }


def left_out(config: CLIPConfig) -> str | None:
    """What a model of ours has and CLIPModel has no place for, in words; None: nothing."""
    if config.loss != "sigmoid":
        return None
    return "the bias that the sigmoid loss has learned, which CLIPModel has no place for; --to openclip keeps it"


def from_hf_config(theirs: Mapping[str, Any]) -> CLIPConfig:
    """Our config from the contents of a config.json; a key that is left out has transformers' default.

    Pictures' mean and deviation are in another file, whose contents may be under its name.

    Raises:
        ModelError: another model, or a variant that Trestle does not compute, naming the key.
    """
    if not recognises(theirs):
        raise ModelError(f"config.json: model_type {theirs.get('model_type')!r} cannot be imported as a CLIP")
    # Old files hold what differs from the defaults in *_config_dict, which transformers lets win.
    text, vision = (
        {**(theirs.get(f"{side}_config") or {}), **(theirs.get(f"{side}_config_dict") or {})}
        for side in ("text", "vision")
    )
    t, v = text.get("hidden_size", 512), vision.get("hidden_size", 768)
    act = text.get("hidden_act", "quick_gelu")
    epsilon, vocabulary = text.get("layer_norm_eps", 1e-5), text.get("vocab_size", 49408)
    require(text, "text_config", "hidden_act", "quick_gelu", "gelu")
    require(text, "text_config", "intermediate_size", 4 * t)
    # At 2, as in files of before 2023, transformers reads at the largest token, as we do.
    require(text, "text_config", "eos_token_id", vocabulary - 1, 2, 49407)
    require(vision, "vision_config", "intermediate_size", 4 * v)
    require(vision, "vision_config", "num_channels", 3)
    if vision.get("hidden_act", "quick_gelu") != act or vision.get("layer_norm_eps", 1e-5) != epsilon:
        raise ModelError("config.json: text_config and vision_config differ in hidden_act or layer_norm_eps")
    if text.get("attention_dropout", 0.0) != vision.get("attention_dropout", 0.0):
        raise ModelError("config.json: text_config and vision_config differ in attention_dropout")
    pictures, default = theirs.get(PREPROCESSING) or {}, CLIPConfig()
    config = CLIPConfig(
        embed_dim=theirs.get("projection_dim", 512),
        image_size=vision.get("image_size", 224),
        vision="vit",
        vision_layers=vision.get("num_hidden_layers", 12),
        vision_width=v,
        vision_heads=vision.get("num_attention_heads", 12),
        patch_size=vision.get("patch_size", 32),
        context_length=text.get("max_position_embeddings", 77),
        vocab_size=vocabulary,
        text_layers=text.get("num_hidden_layers", 12),
        text_width=t,
        text_heads=text.get("num_attention_heads", 8),
        activation="quickgelu" if act == "quick_gelu" else "gelu",
        dropout=text.get("attention_dropout", 0.0),
        norm_epsilon=epsilon,
        image_mean=tuple(pictures.get("image_mean", default.image_mean)),
        image_std=tuple(pictures.get("image_std", default.image_std)),
    )
    config.check()
    return config
