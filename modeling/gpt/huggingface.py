"""Weights and config to and from transformers: GPT2LMHeadModel and LlamaForCausalLM, tensor by tensor.

Pure conversion between our global tensors (named as in `network.describe`) and theirs; reading and writing files is
somebody else's. What changes on the way:
- Megatron Core keeps query, key and value in one matrix, interleaved by query group: each group holds its query heads,
  then its key, then its value. GPT-2 has all queries, all keys, all values; Llama has three matrices.
- GPT-2's Conv1D stores a linear layer's weight transposed.
- SwiGLU's gate and up projections are [0] and [1] of our `[2, f, h]`, two matrices in Llama.
Rotary positions need no change: both rotate the two halves of a head (Megatron Core's non-interleaved form).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modeling.errors import ModelError
from modeling.gpt.config import GPTConfig

MODELS = "GPT-2 and Llama of transformers"
CONFIG_FILE = "config.json"
BESIDE = ()
WEIGHTS = "model"
FREE = ("dropout",)

# What each of transformers' classes can express, in our keys.
_FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {
        "positions": "learned",
        "normalization": "layernorm",
        "activation": "gelu",
        "biases": True,
        "attention": "dense",
    },
    "LlamaForCausalLM": {
        "positions": "rotary",
        "normalization": "rmsnorm",
        "activation": "swiglu",
        "attention": "dense",
    },
}


def architecture(config: GPTConfig) -> str:
    """The transformers class that computes what `config` describes; raises ModelError naming what none can."""
    reasons = []
    for name, needs in _FAMILIES.items():
        wrong = [
            f"model.{key} {_yaml(getattr(config, key))} is not {_yaml(value)}"
            for key, value in needs.items()
            if getattr(config, key) != value
        ]
        if name == "GPT2LMHeadModel" and config.query_groups != config.num_attention_heads:
            wrong.append(f"model.num_query_groups {config.query_groups} is not the {config.num_attention_heads} heads")
        if not wrong:
            return name
        reasons.append(f"{name}: {', '.join(wrong)}")
    raise ModelError(f"transformers has no class for this model; what stands against {'; against '.join(reasons)}")


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class _Rule:
    """One of our tensors, the tensors of transformers that hold the same numbers, and the way there and back."""

    ours: str
    shape: tuple[int, ...]
    theirs: tuple[str, ...]
    there: Callable[[Tensor], Sequence[Tensor]]
    back: Callable[[Sequence[Tensor]], Tensor]


def _same(ours: str, shape: tuple[int, ...], theirs: str) -> _Rule:
    return _Rule(ours, shape, (theirs,), lambda x: [x], lambda xs: xs[0])


def _transposed(ours: str, shape: tuple[int, ...], theirs: str) -> _Rule:
    return _Rule(ours, shape, (theirs,), lambda x: [x.t()], lambda xs: xs[0].t())


def split_qkv(config: GPTConfig, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Our interleaved `[(heads + 2 groups) d, ...]` as query `[heads d, ...]`, key and value `[groups d, ...]`."""
    groups, d = config.query_groups, config.head_size
    heads = config.num_attention_heads // groups
    grouped = qkv.reshape(groups, heads + 2, d, *qkv.shape[1:])
    q, k, v = grouped[:, :heads], grouped[:, heads], grouped[:, heads + 1]
    return q.flatten(0, 2), k.flatten(0, 1), v.flatten(0, 1)


def join_qkv(config: GPTConfig, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The inverse of `split_qkv`."""
    groups, d = config.query_groups, config.head_size
    parts = [x.reshape(groups, -1, d, *x.shape[1:]) for x in (q, k, v)]
    return torch.cat(parts, dim=1).flatten(0, 2)


def _gpt2_rules(config: GPTConfig) -> Iterator[_Rule]:
    h, f = config.hidden_size, config.ffn_size

    def fused(ours: str, shape: tuple[int, ...], theirs: str) -> _Rule:
        matrix = len(shape) == 2  # Conv1D: transposed
        return _Rule(
            ours,
            shape,
            (theirs,),
            lambda x: [torch.cat(split_qkv(config, x)).t() if matrix else torch.cat(split_qkv(config, x))],
            lambda xs: join_qkv(config, *(xs[0].t() if matrix else xs[0]).chunk(3)),
        )

    yield _same("embedding.word_embeddings.weight", (config.vocabulary, h), "transformer.wte.weight")
    yield _same("embedding.position_embeddings.weight", (config.sequence_length, h), "transformer.wpe.weight")
    for i in range(config.num_layers):
        ours, theirs = f"decoder.layers.{i}", f"transformer.h.{i}"
        for norm, name in (("input_layernorm", "ln_1"), ("pre_mlp_layernorm", "ln_2")):
            yield _same(f"{ours}.{norm}.weight", (h,), f"{theirs}.{name}.weight")
            yield _same(f"{ours}.{norm}.bias", (h,), f"{theirs}.{name}.bias")
        yield fused(f"{ours}.self_attention.linear_qkv.weight", (3 * h, h), f"{theirs}.attn.c_attn.weight")
        yield fused(f"{ours}.self_attention.linear_qkv.bias", (3 * h,), f"{theirs}.attn.c_attn.bias")
        for linear, name, out, into in (
            ("self_attention.linear_proj", "attn.c_proj", h, h),
            ("mlp.linear_fc1", "mlp.c_fc", f, h),
            ("mlp.linear_fc2", "mlp.c_proj", h, f),
        ):
            yield _transposed(f"{ours}.{linear}.weight", (out, into), f"{theirs}.{name}.weight")
            yield _same(f"{ours}.{linear}.bias", (out,), f"{theirs}.{name}.bias")
    yield _same("decoder.final_layernorm.weight", (h,), "transformer.ln_f.weight")
    yield _same("decoder.final_layernorm.bias", (h,), "transformer.ln_f.bias")
    if not config.tie_embeddings:
        yield _same("output_layer.weight", (config.vocabulary, h), "lm_head.weight")


def _llama_rules(config: GPTConfig) -> Iterator[_Rule]:
    h, f = config.hidden_size, config.ffn_size
    qkv_size = h + 2 * config.query_groups * config.head_size
    kinds = ("weight", "bias") if config.biases else ("weight",)
    yield _same("embedding.word_embeddings.weight", (config.vocabulary, h), "model.embed_tokens.weight")
    for i in range(config.num_layers):
        ours, theirs = f"decoder.layers.{i}", f"model.layers.{i}"
        yield _same(f"{ours}.input_layernorm.weight", (h,), f"{theirs}.input_layernorm.weight")
        yield _same(f"{ours}.pre_mlp_layernorm.weight", (h,), f"{theirs}.post_attention_layernorm.weight")
        for kind in kinds:
            into_h, into_f = ((h,), (f,)) if kind == "weight" else ((), ())
            yield _Rule(
                f"{ours}.self_attention.linear_qkv.{kind}",
                (qkv_size, *into_h),
                tuple(f"{theirs}.self_attn.{x}_proj.{kind}" for x in "qkv"),
                lambda x: split_qkv(config, x),
                lambda xs: join_qkv(config, *xs),
            )
            yield _same(f"{ours}.self_attention.linear_proj.{kind}", (h, *into_h), f"{theirs}.self_attn.o_proj.{kind}")
            yield _Rule(
                f"{ours}.mlp.linear_fc1.{kind}",
                (2, f, *into_h),
                (f"{theirs}.mlp.gate_proj.{kind}", f"{theirs}.mlp.up_proj.{kind}"),
                lambda x: [x[0], x[1]],
                lambda xs: torch.stack(tuple(xs)),
            )
            yield _same(f"{ours}.mlp.linear_fc2.{kind}", (h, *into_f), f"{theirs}.mlp.down_proj.{kind}")
    yield _same("decoder.final_layernorm.weight", (h,), "model.norm.weight")
    if not config.tie_embeddings:
        yield _same("output_layer.weight", (config.vocabulary, h), "lm_head.weight")


def _rules(config: GPTConfig) -> Iterator[_Rule]:
    return _gpt2_rules(config) if architecture(config) == "GPT2LMHeadModel" else _llama_rules(config)


def export_tensors(config: GPTConfig, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The state dict of transformers' model, one of our tensors at a time.

    Args:
        config: a shape that `architecture` accepts.
        read: our global tensor by its name in `network.describe`, in its global shape (SwiGLU's fc1: `[2, f, h]`).

    Yields:
        (name, contiguous tensor of its own storage). A tied `lm_head.weight` is left out, as in transformers' files.

    Raises:
        ModelError: transformers has no class for this model.
    """
    rules = _rules(config)  # not a generator: what cannot be expressed is refused at the call
    return _export(rules, read)


def _export(rules: Iterator[_Rule], read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    for rule in rules:
        ours = read(rule.ours)
        _check_shape(rule.ours, ours, rule.shape)
        for name, tensor in zip(rule.theirs, rule.there(ours), strict=True):
            yield name, tensor.clone(memory_format=torch.contiguous_format)


def import_tensors(config: GPTConfig, read_hf: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our global tensors from transformers' state dict, one at a time.

    Args:
        config: what `from_hf_config` made of the model's config.json.
        read_hf: a tensor by its name in the state dict; raises KeyError for a name that is not there.

    Yields:
        (name in `network.describe`, contiguous tensor of the global shape).

    Raises:
        ModelError: transformers has no class for this model; a tensor is missing or has not the config's shape.
    """
    return _import(_rules(config), read_hf)


def _import(rules: Iterator[_Rule], read_hf: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    for rule in rules:
        expected = rule.there(torch.empty(rule.shape, device="meta"))
        parts = []
        for name, like in zip(rule.theirs, expected, strict=True):
            part = _read(read_hf, name)
            _check_shape(name, part, tuple(like.shape))
            parts.append(part)
        yield rule.ours, rule.back(parts).contiguous()


def _read(read_hf: Callable[[str], Tensor], name: str) -> Tensor:
    # Files saved from GPT2Model, as the published GPT-2's are, have no "transformer." before their names.
    for candidate in (name, name.removeprefix("transformer.")):
        try:
            return read_hf(candidate)
        except KeyError:
            continue
    raise ModelError(f"the model to import has no tensor {name}, which its config.json asks for")


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ModelError(f"tensor {name} has shape {list(tensor.shape)}, but the config asks for {list(shape)}")


def to_hf_config(config: GPTConfig, *, eod_id: int | None = None) -> dict[str, Any]:
    """The contents of config.json; `eod_id` is the end-of-document token, which begins and ends a text.

    Llama has no dropout but on attention weights, so that alone is carried over. Raises ModelError as `architecture`.
    """
    name = architecture(config)
    common = {
        "architectures": [name],
        "vocab_size": config.vocabulary,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_std,
        "bos_token_id": eod_id,
        "eos_token_id": eod_id,
    }
    if name == "GPT2LMHeadModel":
        return common | {
            "model_type": "gpt2",
            "n_layer": config.num_layers,
            "n_head": config.num_attention_heads,
            "n_embd": config.hidden_size,
            "n_inner": config.ffn_size,
            "n_positions": config.sequence_length,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.norm_epsilon,
            "embd_pdrop": config.dropout,
            "resid_pdrop": config.dropout,
            "attn_pdrop": config.dropout,
        }
    return common | {
        "model_type": "llama",
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.query_groups,
        "head_dim": config.head_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "max_position_embeddings": config.sequence_length,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "attention_bias": config.biases,
        "mlp_bias": config.biases,
        "attention_dropout": config.dropout,
        # Before version 5 transformers read the first, since then the second.
        "rope_theta": float(config.rotary_base),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(config.rotary_base)},
    }


def recognises(theirs: Mapping[str, Any]) -> bool:
    """Whether a config.json is of one of `MODELS`."""
    return theirs.get("model_type") in ("gpt2", "llama")


def other_files(config: GPTConfig) -> dict[str, dict[str, Any]]:
    """What else lies beside the weights: nothing."""
    return {}


def from_hf_config(theirs: Mapping[str, Any]) -> GPTConfig:
    """Our config from the contents of a config.json; a key that is left out has transformers' default.

    Raises:
        ModelError: another model than GPT-2 or Llama, or a variant that Trestle does not compute, naming the key.
    """
    kinds = {"gpt2": _from_gpt2, "llama": _from_llama}
    kind = theirs.get("model_type")
    if kind not in kinds:
        raise ModelError(f"config.json: model_type {kind!r} cannot be imported; there are {', '.join(sorted(kinds))}")
    config = kinds[str(kind)](theirs)
    config.check()
    return config


def _require(theirs: Mapping[str, Any], key: str, *allowed: Any) -> None:
    """Refuse a value of `key` other than `allowed`, the first of which is transformers' default."""
    value = theirs.get(key, allowed[0])
    if value not in allowed:
        raise ModelError(
            f"config.json: {key} {value!r} cannot be imported; {' or '.join(repr(x) for x in allowed)} would fit"
        )


def _from_gpt2(theirs: Mapping[str, Any]) -> GPTConfig:
    # gelu_new and gelu_pytorch_tanh are the same function; "gelu" is not.
    _require(theirs, "activation_function", "gelu_new", "gelu_pytorch_tanh")
    _require(theirs, "scale_attn_weights", True)
    _require(theirs, "scale_attn_by_inverse_layer_idx", False)
    _require(theirs, "add_cross_attention", False)
    dropouts = {key: float(theirs.get(key, 0.1)) for key in ("embd_pdrop", "resid_pdrop", "attn_pdrop")}
    if len(set(dropouts.values())) > 1:
        values = ", ".join(f"{key} {value}" for key, value in dropouts.items())
        raise ModelError(f"config.json: {values} differ, and model.dropout is one number; make them equal")
    return GPTConfig(
        num_layers=theirs.get("n_layer", 12),
        hidden_size=theirs.get("n_embd", 768),
        num_attention_heads=theirs.get("n_head", 12),
        ffn_hidden_size=theirs.get("n_inner"),
        sequence_length=theirs.get("n_positions", 1024),
        vocab_size=theirs.get("vocab_size", 50257),
        tie_embeddings=theirs.get("tie_word_embeddings", True),
        norm_epsilon=theirs.get("layer_norm_epsilon", 1e-5),
        initializer_std=theirs.get("initializer_range", 0.02),
        dropout=dropouts["embd_pdrop"],
    )


def _from_llama(theirs: Mapping[str, Any]) -> GPTConfig:
    hidden, heads = theirs.get("hidden_size", 4096), theirs.get("num_attention_heads", 32)
    groups = theirs.get("num_key_value_heads")
    _require(theirs, "hidden_act", "silu")
    _require(theirs, "mlp_bias", theirs.get("attention_bias", False))
    if theirs.get("head_dim") is not None:
        _require(theirs, "head_dim", hidden // heads)
    return GPTConfig(
        num_layers=theirs.get("num_hidden_layers", 32),
        hidden_size=hidden,
        num_attention_heads=heads,
        num_query_groups=None if groups == heads else groups,
        ffn_hidden_size=theirs.get("intermediate_size", 11008),
        sequence_length=theirs.get("max_position_embeddings", 2048),
        vocab_size=theirs.get("vocab_size", 32000),
        tie_embeddings=theirs.get("tie_word_embeddings", False),
        positions="rotary",
        rotary_base=_rotary_base(theirs),
        normalization="rmsnorm",
        norm_epsilon=theirs.get("rms_norm_eps", 1e-6),
        activation="swiglu",
        biases=theirs.get("attention_bias", False),
        initializer_std=theirs.get("initializer_range", 0.02),
        dropout=theirs.get("attention_dropout", 0.0),
    )


def _rotary_base(theirs: Mapping[str, Any]) -> int:
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or float(rope.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelError(
            f"config.json: rotary positions of type {kind!r} ({dict(rope)}) cannot be imported; 'default' would fit"
        )
    base = float(rope.get("rope_theta", theirs.get("rope_theta", 10000.0)))
    if base != int(base):
        raise ModelError(f"config.json: rope_theta {base} cannot be imported; a whole number would fit")
    return int(base)
