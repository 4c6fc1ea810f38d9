"""The vision transformer (Dosovitskiy et al. 2020) with CLIP's extra norm before the first layer."""

from __future__ import annotations

import torch
from torch import Tensor

from modeling.clip.blocks import Transformer, empty, whole_norm
from modeling.clip.config import CLIPConfig
from modeling.execution import Execution


class VisionTransformer(torch.nn.Module):
    """Normalised pictures `[b, 3, H, W]` → `[b, embed_dim]`, read at the class token (Radford et al. 2021, 2.4)."""

    def __init__(self, clip: CLIPConfig, execution: Execution) -> None:
        super().__init__()
        self.clip = clip
        width = clip.vision_width
        self.patch_embedding = torch.nn.Linear(
            3 * clip.patch_size**2,
            width,
            bias=False,
            device=torch.cuda.current_device(),
            dtype=execution.dtype,
        )
        self.class_embedding = empty(execution, width)
        self.position_embedding = empty(execution, clip.patches + 1, width)
        self.norm_before = whole_norm(clip, execution, width)
        self.transformer = Transformer(
            clip, execution, layers=clip.vision_layers, width=width, heads=clip.vision_heads, causal=False
        )
        self.norm_after = whole_norm(clip, execution, width)
        self.projection = empty(execution, width, clip.embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embedding(unfold(images, self.clip.patch_size)) + self.position_embedding[1:]
        if self.training and self.clip.patch_dropout > 0:
            x = keep_some(x, self.clip.kept_patches)
        first = (self.class_embedding + self.position_embedding[0]).expand(len(x), 1, -1)
        x = self.norm_before(torch.cat([first, x], dim=1))
        x = self.transformer(x.transpose(0, 1).contiguous())
        return self.norm_after(x[0]) @ self.projection


def unfold(images: Tensor, size: int) -> Tensor:
    """Patches `[b, patches, 3 size²]`, row by row, each in the order of a convolution's weight `[3, size, size]`."""
    b, channels, height, width = images.shape
    cut = images.reshape(b, channels, height // size, size, width // size, size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, channels * size * size)


def keep_some(x: Tensor, keep: int) -> Tensor:
    """`keep` of the positions of `[b, s, h]`, other ones for each sample (Li et al. 2023, FLIP).

    Drawn from the default generator, which is in the same state on all ranks of a tensor-parallel group.
    """
    chosen = torch.rand(x.shape[:2], device=x.device).topk(keep, dim=1).indices
    return x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2]))
