"""Parameters and floating-point operations of a CLIP, by formula.

Convention: a multiplication of [m, k] by [k, n] is 2 m k n operations, and training is three times the forward pass
(each product has two in backward), once for a locked tower. Products alone count: linear layers, convolutions and
attention, the causal one as if it saw the whole caption (the convention of PaLM: Chowdhery et al. 2022, appendix B).
Neither what is recomputed nor a gradient cache's first pass counts, nor the N x N similarities of the loss.
"""

from __future__ import annotations

from collections.abc import Iterator

from modeling.clip.config import RESNET50_BLOCKS, CLIPConfig


def parameter_count(config: CLIPConfig) -> int:
    """All parameters: both towers with their projections, the scale, and a bias where the loss has one.

    A ResNet-50's running means and variances are stored and counted as well.
    """
    return image_parameters(config) + text_parameters(config) + (2 if config.loss == "sigmoid" else 1)


def image_parameters(config: CLIPConfig) -> int:
    """The image tower with its projection."""
    if config.vision == "resnet50":
        return _resnet_parameters(config)
    w = config.vision_width
    patches = 3 * config.patch_size**2 * w
    class_and_positions = w + (config.patches + 1) * w
    return patches + class_and_positions + config.vision_layers * _layer(w) + 4 * w + w * config.embed_dim


def text_parameters(config: CLIPConfig) -> int:
    """The text tower with its projection."""
    w = config.text_width
    embeddings = (config.vocabulary + config.context_length) * w
    return embeddings + config.text_layers * _layer(w) + 2 * w + w * config.embed_dim


def _layer(width: int) -> int:
    """Attention and MLP with their biases, and two norms."""
    return 12 * width**2 + 9 * width + 4 * width


def convolutions(config: CLIPConfig) -> Iterator[tuple[int, int, int, int]]:
    """A ResNet-50's convolutions: (channels in, channels out, kernel, side of the output)."""
    half, side = config.vision_width // 2, config.image_size // 2
    yield from ((3, half, 3, side), (half, half, 3, side), (half, config.vision_width, 3, side))
    side, channels = side // 2, config.vision_width
    for stage, blocks in enumerate(RESNET50_BLOCKS):
        inner = config.vision_width * 2**stage
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            yield channels, inner, 1, side
            yield inner, inner, 3, side
            side //= stride  # by average pooling, before the last and in the shortcut
            yield inner, 4 * inner, 1, side
            if block == 0:
                yield channels, 4 * inner, 1, side
            channels = 4 * inner


def _resnet_parameters(config: CLIPConfig) -> int:
    total = sum(into * out * kernel**2 + 4 * out for into, out, kernel, _ in convolutions(config))
    w = 32 * config.vision_width
    return total + (config.patches + 1) * w + 3 * (w * w + w) + w * config.embed_dim + config.embed_dim


def image_flops(config: CLIPConfig) -> float:
    """Forward operations of one picture in training."""
    if config.vision == "resnet50":
        w, s = 32 * config.vision_width, config.patches + 1
        total = sum(2.0 * into * out * kernel**2 * side**2 for into, out, kernel, side in convolutions(config))
        # One query, s keys and values.
        return total + 2.0 * w * w * (1 + 2 * s) + 4.0 * s * w + 2.0 * w * config.embed_dim
    w = config.vision_width
    embedding = 2.0 * config.patches * 3 * config.patch_size**2 * w
    layers = _transformer_flops(config.vision_layers, w, config.kept_patches + 1)
    return embedding + layers + 2.0 * w * config.embed_dim


def text_flops(config: CLIPConfig) -> float:
    """Forward operations of one caption."""
    layers = _transformer_flops(config.text_layers, config.text_width, config.context_length)
    return layers + 2.0 * config.text_width * config.embed_dim


def _transformer_flops(layers: int, width: int, positions: int) -> float:
    return layers * (24.0 * positions * width**2 + 4.0 * positions**2 * width)


def flops_per_pair(config: CLIPConfig) -> float:
    """Training operations of one picture with its caption."""
    image, text = image_flops(config), text_flops(config)
    return image * (1 if config.lock_image else 3) + text * (1 if config.lock_text else 3)


def flops_per_token(config: CLIPConfig) -> float:
    """Training operations of one pair over the caption's length, which the rest of Trestle counts as its tokens."""
    return flops_per_pair(config) / config.context_length
