"""What one rank holds of a CLIP, by formula. The network's own account is `network.describe`."""

from __future__ import annotations

from collections.abc import Iterator

from modeling.clip.config import CLIPConfig
from modeling.clip.flops import convolutions
from modeling.footprint import Footprint, Layer, LocalParameter
from modeling.layout import Layout


def footprint(config: CLIPConfig, layout: Layout, stage: int, recompute: str) -> Footprint:
    """Any rank: a CLIP has no stages, and its tensor-parallel peers hold as much. Raises ModelError while the
    vocabulary is not known.
    """
    summed, partial = 0.0, 0
    towers = [("text", config.text_width, config.text_layers, config.context_length, config.lock_text)]
    if config.vision == "vit":
        vision = config.vision_width, config.vision_layers, config.kept_patches + 1, config.lock_image
        towers.append(("vision", *vision))
    for _, width, layers, positions, locked in towers:
        layer = _layer(width)
        if locked:  # forward alone: half of the sums, nothing kept
            summed += layer.summed(positions, layers, Layout(layout.tensor), "none") / 2
            continue
        summed += layer.summed(positions, layers, layout, recompute)
        partial += layers * layer.partial if layout.sequence else 0
    return Footprint(tuple(_parameters(config, layout.tensor)), summed, partial)


def _layer(width: int) -> Layer:
    return Layer(hidden=width, kv=width, ffn=4 * width)


def _parameters(config: CLIPConfig, tensor: int) -> Iterator[LocalParameter]:
    yield LocalParameter("log_scale", 1, False)
    if config.loss == "sigmoid":
        yield LocalParameter("logit_bias", 1, False)
    yield from _resnet(config) if config.vision == "resnet50" else _vision(config, tensor)
    w, trains = config.text_width, not config.lock_text
    yield LocalParameter("text.token_embedding", config.vocabulary * w, True, trains)
    yield LocalParameter("text.position_embedding", config.context_length * w, True, trains)
    yield from _tower("text.", w, config.text_layers, tensor, trains)
    yield from _norm("text.norm_after", w, trains)
    yield LocalParameter("text.projection", w * config.embed_dim, True, trains)


def _vision(config: CLIPConfig, tensor: int) -> Iterator[LocalParameter]:
    w, trains = config.vision_width, not config.lock_image
    yield LocalParameter("vision.patch_embedding.weight", 3 * config.patch_size**2 * w, True, trains)
    yield LocalParameter("vision.class_embedding", w, False, trains)
    yield LocalParameter("vision.position_embedding", (config.patches + 1) * w, True, trains)
    yield from _norm("vision.norm_before", w, trains)
    yield from _tower("vision.", w, config.vision_layers, tensor, trains)
    yield from _norm("vision.norm_after", w, trains)
    yield LocalParameter("vision.projection", w * config.embed_dim, True, trains)


def _tower(prefix: str, width: int, layers: int, tensor: int, trains: bool) -> Iterator[LocalParameter]:
    for number in range(layers):
        yield from _layer(width).parameters(f"{prefix}transformer.layers.{number}.", tensor, trains)


def _norm(name: str, width: int, trains: bool) -> Iterator[LocalParameter]:
    yield LocalParameter(f"{name}.weight", width, False, trains)
    yield LocalParameter(f"{name}.bias", width, False, trains)


def _resnet(config: CLIPConfig) -> Iterator[LocalParameter]:
    trains = not config.lock_image
    for number, (into, out, kernel, _) in enumerate(convolutions(config)):
        name = f"vision.convolution.{number}"
        yield LocalParameter(f"{name}.weight", into * out * kernel**2, True, trains)
        yield from _norm(f"{name}.norm", out, trains)
        for statistic in ("running_mean", "running_var"):
            yield LocalParameter(f"{name}.norm.{statistic}", out, False, False)
    w = 32 * config.vision_width
    yield LocalParameter("vision.pool.position_embedding", (config.patches + 1) * w, True, trains)
    for name, width in (("query", w), ("key", w), ("value", w), ("projection", config.embed_dim)):
        yield LocalParameter(f"vision.pool.{name}.weight", w * width, True, trains)
        yield LocalParameter(f"vision.pool.{name}.bias", width, False, trains)
