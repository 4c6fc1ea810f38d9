"""What a rank of a CLIP computes in one micro-batch, by formula."""

from __future__ import annotations

from modeling.clip.config import CLIPConfig
from modeling.clip.flops import convolutions
from modeling.layout import Layout
from modeling.work import Attention, LayerShape, Product, Traffic, Work, together


def work(config: CLIPConfig, layout: Layout, stage: int, samples: int, recompute: str) -> Work:
    """Any rank with `samples` pairs. The loss over the batch is `similarities`' business."""
    image = _resnet(config, samples) if config.vision == "resnet50" else _vision(config, layout, samples, recompute)
    return together([image, _text(config, layout, samples, recompute)])


def similarities(config: CLIPConfig, batch: int, replicas: int) -> float:
    """Operations of a rank for the loss over `batch` pairs, in fp32: similarities twice, and two products back."""
    return 4 * 2.0 * batch * (batch / replicas) * config.embed_dim


def _vision(config: CLIPConfig, layout: Layout, samples: int, recompute: str) -> Work:
    w, locked, positions = config.vision_width, config.lock_image, config.kept_patches + 1
    layers = LayerShape(w, config.vision_heads, w, 4 * w, config.activation).work(
        prefix="vision ",
        layers=config.vision_layers,
        samples=samples,
        positions=positions,
        tensor=layout.tensor,
        sequence=layout.sequence,
        recompute=recompute,
        causal=False,
        locked=locked,
    )
    patches = float(samples * config.patches)
    trained = 0 if locked else 1
    outer = Work(
        (
            # Pictures have no gradient: of two products in backward there is one.
            Product("vision patches", patches, w, 3 * config.patch_size**2, 1, trained),
            Product("vision projection", samples, config.embed_dim, w, 1, 2 * trained),
        ),
        (),
        (
            Traffic(
                "pictures and norms",
                3 * patches * 3 * config.patch_size**2 + 10 * samples * positions * w,
                trained * 10.0 * samples * positions * w,
                10,
            ),
        ),
    )
    return together([layers, outer])


def _text(config: CLIPConfig, layout: Layout, samples: int, recompute: str) -> Work:
    w, locked, positions = config.text_width, config.lock_text, config.context_length
    layers = LayerShape(w, config.text_heads, w, 4 * w, config.activation).work(
        prefix="text ",
        layers=config.text_layers,
        samples=samples,
        positions=positions,
        tensor=layout.tensor,
        sequence=layout.sequence,
        recompute=recompute,
        causal=True,
        locked=locked,
    )
    trained = 0 if locked else 1
    tokens = float(samples * positions)
    outer = Work(
        (Product("text projection", samples, config.embed_dim, w, 1, 2 * trained),),
        (),
        (Traffic("text embedding", 4 * tokens * w, trained * 4 * tokens * w, 4),),
    )
    return together([layers, outer])


def _resnet(config: CLIPConfig, samples: int) -> Work:
    gradients = 0 if config.lock_image else 2
    products, elements, read = [], 0.0, 0.0
    for number, (into, out, kernel, side) in enumerate(convolutions(config)):
        first = number == 0 and gradients
        products.append(
            Product(
                f"vision convolution {number}",
                float(samples * side**2),
                out,
                into * kernel**2,
                1,
                1 if first else gradients,
            )
        )
        elements += samples * out * side**2
        read += 1
    w, positions = 32 * config.vision_width, config.patches + 1
    for name, queries, width in (
        ("query", 1, w),
        ("key", positions, w),
        ("value", positions, w),
        ("projection", 1, config.embed_dim),
    ):
        products.append(Product(f"vision pool {name}", float(samples * queries), width, w, 1, gradients))
    pool = Attention(
        samples * config.vision_heads, 1, positions, w // config.vision_heads, 1, gradients=not config.lock_image
    )
    # Batch norm reads its input three times and writes once, the nonlinearity reads and writes; backward as much again.
    passes = Traffic("batch norms", 6 * elements, (0 if config.lock_image else 9) * elements, 8 * read)
    return Work(tuple(products), (pool,), (passes,))
