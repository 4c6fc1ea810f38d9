"""What both of the formats that other libraries keep a CLIP in have in common: rules from our tensors to theirs.

What changes on the way:
- Megatron Core keeps query, key and value in one matrix, interleaved by head: each head's query, key, value in turn.
  open_clip has all queries, all keys, all values in one; Hugging Face three matrices.
- The patch embedding is a convolution's weight `[width, 3, p, p]` there, and a matrix here.
- The temperature has no dimension there, and one element here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling.clip.config import CLIPConfig
from modeling.errors import ModelError

FREE = (
    "dropout",
    "patch_dropout",
    "image_size",
    "loss",
    "max_scale",
    "initial_bias",
    "loss_tile",
    "lock_image",
    "lock_text",
    "freeze_batch_norm",
    "interpolate_positions",
    "image_mean",
    "image_std",
)
"""Keys of `model` that imported weights do not decide; the image size needs `interpolate_positions`."""


@dataclass(frozen=True)
class Rule:
    """One of our tensors, the tensors of theirs that hold the same numbers, and the way there and back."""

    ours: str
    shape: tuple[int, ...]
    theirs: tuple[str, ...]
    there: Callable[[Tensor], Sequence[Tensor]]
    back: Callable[[Sequence[Tensor]], Tensor]
    positions: bool = False
    """A table of the image tower's positions, whose length another image size changes."""
    otherwise: float | None = None
    """What fills our tensor if theirs is not there; None: it must be."""


def same(ours: str, shape: tuple[int, ...], theirs: str, *, positions: bool = False) -> Rule:
    return Rule(ours, shape, (theirs,), lambda x: [x], lambda xs: xs[0], positions)


def transposed(ours: str, shape: tuple[int, ...], theirs: str) -> Rule:
    return Rule(ours, shape, (theirs,), lambda x: [x.t()], lambda xs: xs[0].t())


def reshaped(ours: str, shape: tuple[int, ...], theirs: str, their_shape: tuple[int, ...], **others: Any) -> Rule:
    return Rule(ours, shape, (theirs,), lambda x: [x.reshape(their_shape)], lambda xs: xs[0].reshape(shape), **others)


def patch_embedding(config: CLIPConfig, theirs: str) -> Rule:
    p, w = config.patch_size, config.vision_width
    return reshaped("vision.patch_embedding.weight", (w, 3 * p * p), theirs, (w, 3, p, p))


def scale_and_bias(config: CLIPConfig, *, bias: bool) -> Iterator[Rule]:
    """The temperature, and the bias of a loss that has one: of theirs if `bias`, else as it starts."""
    yield reshaped("log_scale", (1,), "logit_scale", ())
    if config.loss == "sigmoid" and bias:
        yield reshaped("logit_bias", (1,), "logit_bias", (), otherwise=config.initial_bias)
    elif config.loss == "sigmoid":
        yield Rule("logit_bias", (1,), (), lambda _: (), lambda _: torch.empty(1), otherwise=config.initial_bias)


def split_qkv(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Our `[3 h, ...]` by head as query, key and value, each `[h, ...]`."""
    by_head = qkv.reshape(heads, 3, -1, *qkv.shape[1:])
    return tuple(by_head[:, i].flatten(0, 1) for i in range(3))


def join_qkv(parts: Sequence[Tensor], heads: int) -> Tensor:
    """The inverse of `split_qkv`."""
    return torch.stack([x.reshape(heads, -1, *x.shape[1:]) for x in parts], dim=1).flatten(0, 2)


@dataclass(frozen=True)
class LayerNames:
    """What a layer's parts are called there. `qkv`: one name with all three, or three, without weight or bias."""

    norm_1: str
    norm_2: str
    qkv: tuple[str, ...]
    qkv_separator: str  # before "weight" and "bias"
    out: str
    fc1: str
    fc2: str


def layer_rules(ours: str, theirs: str, width: int, heads: int, names: LayerNames) -> Iterator[Rule]:
    """All tensors of the transformer layer `ours`, which is `theirs` there."""
    fused = len(names.qkv) == 1
    for kind, into in (("weight", (width,)), ("bias", ())):
        yield same(f"{ours}.input_layernorm.{kind}", (width,), f"{theirs}.{names.norm_1}.{kind}")
        yield same(f"{ours}.pre_mlp_layernorm.{kind}", (width,), f"{theirs}.{names.norm_2}.{kind}")
        yield Rule(
            f"{ours}.self_attention.linear_qkv.{kind}",
            (3 * width, *into),
            tuple(f"{theirs}.{name}{names.qkv_separator}{kind}" for name in names.qkv),
            lambda x: [torch.cat(split_qkv(x, heads))] if fused else split_qkv(x, heads),
            lambda xs: join_qkv(xs[0].chunk(3) if fused else xs, heads),
        )
        yield same(f"{ours}.self_attention.linear_proj.{kind}", (width, *into), f"{theirs}.{names.out}.{kind}")
        yield same(f"{ours}.mlp.linear_fc1.{kind}", (4 * width, *into), f"{theirs}.{names.fc1}.{kind}")
        wide = (4 * width,) if into else ()
        yield same(f"{ours}.mlp.linear_fc2.{kind}", (width, *wide), f"{theirs}.{names.fc2}.{kind}")


def norm_rules(ours: str, width: int, theirs: str) -> Iterator[Rule]:
    for kind in ("weight", "bias"):
        yield same(f"{ours}.{kind}", (width,), f"{theirs}.{kind}")


def export_by(rules: Iterator[Rule], read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Their state dict, one of our tensors at a time, each contiguous and of its own storage."""
    for rule in rules:
        ours = read(rule.ours)
        _check_shape(rule.ours, ours, rule.shape)
        for name, tensor in zip(rule.theirs, rule.there(ours), strict=True):
            yield name, tensor.clone(memory_format=torch.contiguous_format)


def import_by(rules: Iterator[Rule], read: Callable[[str], Tensor], config: CLIPConfig) -> Iterator[tuple[str, Tensor]]:
    """Our tensors from their state dict; `read` raises KeyError for a name that is not there.

    Raises ModelError: a tensor is missing or has not the config's shape, or the positions are those of another image
    size and `interpolate_positions` is not set.
    """
    for rule in rules:
        try:
            parts = [read(name) for name in rule.theirs]
        except KeyError as error:
            if rule.otherwise is None:
                raise ModelError(
                    f"the model to import has no tensor {error.args[0]}, which its config asks for"
                ) from None
            parts = []
        if rule.otherwise is not None and not parts:
            yield rule.ours, torch.full(rule.shape, rule.otherwise)
            continue
        expected = rule.there(torch.empty(rule.shape, device="meta"))
        if rule.positions:
            parts = [fitted_positions(parts[0], config)]
        for name, part, like in zip(rule.theirs, parts, expected, strict=True):
            _check_shape(name, part, tuple(like.shape))
        yield rule.ours, rule.back(parts).contiguous()


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ModelError(f"tensor {name} has shape {list(tensor.shape)}, but the config asks for {list(shape)}")


def fitted_positions(table: Tensor, config: CLIPConfig) -> Tensor:
    """A table `[1 + grid², width]` for the config's image size: bicubic with antialiasing, as open_clip.

    The first row, the class token's (of a ResNet-50 the mean's), stays. Raises ModelError where the sizes differ and
    `interpolate_positions` is not set.
    """
    old = math.isqrt(len(table) - 1)
    if old == config.grid or old**2 != len(table) - 1:
        return table
    if not config.interpolate_positions:
        pixels = config.image_size // config.grid
        raise ModelError(
            f"the model to import has positions for pictures of {old * pixels} x {old * pixels} pixels, but "
            f"model.image_size is {config.image_size}; set model.interpolate_positions to true, or model.image_size to "
            f"{old * pixels}"
        )
    first, grid = table[:1], table[1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    new = (config.grid, config.grid)
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, grid.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype)])


def require(theirs: Mapping[str, Any], section: str, key: str, *allowed: Any) -> None:
    """Refuse a value of `key` other than `allowed`, the first of which is what a missing key means."""
    value = theirs.get(key, allowed[0])
    if value not in allowed:
        raise ModelError(
            f"{section}.{key} {value!r} cannot be imported; {' or '.join(repr(x) for x in allowed)} would fit"
        )
