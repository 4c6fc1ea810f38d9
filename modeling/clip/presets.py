"""Shapes that ship: models of Radford et al. 2021, tables 19 and 20."""

from __future__ import annotations

from typing import Any

# Captions are cut at 77 (76 in the paper, which does not count one of the two special tokens) and the vocabulary is
# that of CLIP's byte-pair encoding: 49,152 + 256 entries with the start and end tokens.
_TEXT: dict[str, Any] = {
    "context_length": 77,
    "vocab_size": 49408,
    "text_layers": 12,
    "activation": "quickgelu",
}


def _vit(layers: int, width: int, patch: int, image: int, embed: int, text_width: int) -> dict[str, Any]:
    return _TEXT | {
        "vision": "vit",
        "embed_dim": embed,
        "image_size": image,
        "vision_layers": layers,
        "vision_width": width,
        "vision_heads": width // 64,
        "patch_size": patch,
        "text_width": text_width,
        "text_heads": text_width // 64,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "clip-vit-b-32": _vit(12, 768, 32, 224, 512, 512),
    "clip-vit-b-16": _vit(12, 768, 16, 224, 512, 512),
    "clip-vit-l-14": _vit(24, 1024, 14, 224, 768, 768),
    "clip-vit-l-14-336": _vit(24, 1024, 14, 336, 768, 768),
    "clip-rn50": _TEXT
    | {
        "vision": "resnet50",
        "embed_dim": 1024,
        "image_size": 224,
        "vision_width": 64,
        "vision_heads": 32,
        "text_width": 512,
        "text_heads": 8,
    },
}
