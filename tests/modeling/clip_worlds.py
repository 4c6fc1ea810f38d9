"""Tiny CLIPs, pictures and captions, and a plain contrastive loss, for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from modeling.clip import network
from modeling.clip.config import CLIPConfig
from modeling.execution import Execution
from modeling.megatron_bridge import seed_dropout

TINY = CLIPConfig(
    embed_dim=16,
    image_size=32,  # 16 patches and the class token: 17, which two ranks do not divide
    vision_layers=2,
    vision_width=32,
    vision_heads=4,
    patch_size=8,
    context_length=11,  # not divided either
    vocab_size=50,
    text_layers=3,
    text_width=24,
    text_heads=2,
)
# What a ViT alone has is left as it comes.
RESNET = replace(
    TINY, vision="resnet50", vision_layers=12, patch_size=32, vision_width=4, vision_heads=2, image_size=64
)
GELU = replace(TINY, activation="gelu", loss="sigmoid", patch_size=16, context_length=12)


def build(config: CLIPConfig, **execution: Any) -> network.CLIP:
    (chunk,) = network.build(config, Execution(**execution))
    return chunk


def perturb(model: network.CLIP, seed: int = 7, scale: float = 0.1) -> None:
    """Give every parameter values of its own: fresh gains and biases are ones and zeros, which hide mix-ups."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def pairs(config: CLIPConfig, batch: int = 4, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures uint8 `[b, 3, H, W]`, and captions of various lengths `[b, context]` that end in the end token."""
    generator = torch.Generator().manual_seed(seed)
    size = (batch, 3, config.image_size, config.image_size)
    images = torch.randint(256, size, dtype=torch.uint8, generator=generator)
    tokens = torch.randint(1, config.vocabulary - 2, (batch, config.context_length), generator=generator)
    tokens[:, 0] = config.vocabulary - 2
    for row, caption in enumerate(tokens):
        end = 2 + (3 * row) % (config.context_length - 2)
        caption[end] = config.vocabulary - 1
        caption[end + 1 :] = 0
    return images, tokens


def loss_and_gradients(
    model: network.CLIP, images: torch.Tensor, tokens: torch.Tensor, dropout_seed: int = 5
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Features and dense InfoNCE loss, and every parameter's gradient."""
    seed_dropout(dropout_seed, 0)
    model.zero_grad(set_to_none=True)
    image, text, log_scale, bias = model(images, tokens)
    logits = log_scale.exp() * image @ text.T + (0 if bias is None else bias * torch.eye(len(image)))
    target = torch.arange(len(image))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, f"no gradient reached {missing}"
    return {"image": image.detach(), "text": text.detach(), "loss": loss.detach()}, gradients
