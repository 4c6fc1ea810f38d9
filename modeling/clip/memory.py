"""What one rank of a CLIP keeps from forward to backward, by formula."""

from __future__ import annotations

from modeling.clip.config import RESNET50_BLOCKS, CLIPConfig
from modeling.layer_memory import Transformer
from modeling.layout import Layout
from modeling.memory import FP32, Activations, Block, Chunk, Op, Run, Segment

INT64 = 8


def activations(config: CLIPConfig, layout: Layout, stage: int, run: Run) -> Activations:
    """Any rank: a CLIP has no stages. Features and their gradients are small; what the loss needs of all ranks' ones is
    O(N d) and counted in `inputs`.

    The image tower runs first, so that the caption tower's backward is first; a locked tower keeps nothing.
    """
    groups: list[tuple[int, Block]] = []
    if not config.lock_image:
        groups += _pictures(config, layout, run)
    if not config.lock_text:
        groups += _captions(config, layout, run)
    pixels = 3 * config.image_size**2
    features = 4 * config.embed_dim * FP32  # both of a pair, and their gradients
    return Activations(
        chunks=(Chunk(tuple(groups)),),
        inputs=run.samples * (pixels + config.context_length * INT64 + features),
    )


def _layer(config: CLIPConfig, layout: Layout, width: int, heads: int, positions: int, causal: bool) -> Transformer:
    return Transformer(
        hidden=width,
        heads=heads,
        kv=width,
        ffn=4 * width,
        positions=positions,
        tensor=layout.tensor,
        sequence=layout.sequence,
        sigmoid=config.activation == "quickgelu",
        causal=causal,
        dropout=config.dropout > 0,
    )


def _captions(config: CLIPConfig, layout: Layout, run: Run) -> list[tuple[int, Block]]:
    width = config.text_width
    layer = _layer(config, layout, width, config.text_heads, config.context_length, causal=True)
    whole = layer.tokens(run) * width * run.element
    table = Op(weight=config.vocabulary * width, work=whole)
    before = (table, Op(_cut(layer, run), weight=config.context_length * width, work=whole))
    return [
        (1, Block((Segment(before),), layer.stream(run))),
        (config.text_layers, layer.block(run)),
        (1, _end(config, layer, run)),
    ]


def _pictures(config: CLIPConfig, layout: Layout, run: Run) -> list[tuple[int, Block]]:
    if config.vision == "resnet50":
        return [(1, Block((Segment(tuple(_resnet(config, run))),)))]
    width = config.vision_width
    layer = _layer(config, layout, width, config.vision_heads, config.kept_patches + 1, causal=False)
    whole = layer.tokens(run) * width * run.element
    patches = run.samples * config.patches * 3 * config.patch_size**2 * run.element
    cut = Op(patches, weight=3 * config.patch_size**2 * width)
    places = Op(0.0, whole, weight=(config.patches + 1) * width, work=whole)
    norm = Op(whole + _cut(layer, run), whole)
    return [
        (1, Block((Segment((cut, places, norm)),), layer.stream(run))),
        (config.vision_layers, layer.block(run)),
        (1, _end(config, layer, run)),
    ]


def _cut(layer: Transformer, run: Run) -> float:
    """Under sequence parallelism a tower's first layer holds a part of a tensor that stays whole."""
    return layer.tokens(run) * layer.hidden * run.element - layer.stream(run)


def _end(config: CLIPConfig, layer: Transformer, run: Run) -> Block:
    """The last norm and the projection, of one position a sample; its gradient is spread over all positions."""
    whole = layer.tokens(run) * layer.hidden * run.element
    return Block(
        (Segment((Op(run.samples * layer.hidden * run.element, whole, weight=layer.hidden * config.embed_dim),)),)
    )


def _resnet(config: CLIPConfig, run: Run) -> list[Op]:
    """A convolution's result, which the norm keeps, and what the nonlinearity leaves of it, which the next convolution
    keeps; pooled ones beside. The norm's backward has three more of its input's size.
    """
    ops: list[Op] = []
    size = run.samples * run.element

    def convolution(into: int, out: int, kernel: int, side: int, saved: float, before: float) -> None:
        result = out * side**2 * size
        ops.append(Op(saved + result, before, weight=into * out * kernel**2, work=3 * result))

    half, side = config.vision_width // 2, config.image_size // 2
    for into, out in ((3, half), (half, half), (half, config.vision_width)):
        given = 3 * config.image_size**2 * size if into == 3 else into * side**2 * size
        convolution(into, out, 3, side, given, 0.0 if into == 3 else given)
    ops.append(Op(config.vision_width * side**2 * size, config.vision_width * side**2 * size))
    side, channels = side // 2, config.vision_width
    for stage, blocks in enumerate(RESNET50_BLOCKS):
        inner = config.vision_width * 2**stage
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            wide = channels * side**2 * size
            convolution(channels, inner, 1, side, wide, wide)
            convolution(inner, inner, 3, side, inner * side**2 * size, inner * side**2 * size)
            if stride > 1:  # what was pooled, and what of it
                ops.append(Op((inner * side**2 + channels * (side // 2) ** 2) * size, inner * side**2 * size))
                side //= stride
            convolution(inner, 4 * inner, 1, side, inner * side**2 * size, inner * side**2 * size)
            if block == 0:
                convolution(channels, 4 * inner, 1, side, 0.0, 4 * inner * side**2 * size)
            channels = 4 * inner
    places = (config.patches + 1) * channels * size
    pool = 3 * channels**2 + channels * config.embed_dim
    ops.append(Op(channels * side**2 * size + 4 * places, places, weight=pool, work=3 * places))
    return ops
