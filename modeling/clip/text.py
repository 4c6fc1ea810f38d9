"""The text transformer: a causal decoder read at the end token."""

from __future__ import annotations

import torch
from torch import Tensor

from modeling.clip.blocks import Transformer, empty, whole_norm
from modeling.clip.config import CLIPConfig
from modeling.execution import Execution


class TextTransformer(torch.nn.Module):
    """Captions `[b, context]` → `[b, embed_dim]`, read at each one's largest token: the end token has the last number.

    The embedding is whole on every tensor-parallel rank: 100 MB of L/14's at most, and no vocabulary to pad.
    """

    def __init__(self, clip: CLIPConfig, execution: Execution) -> None:
        super().__init__()
        width = clip.text_width
        self.token_embedding = empty(execution, clip.vocabulary, width)
        self.position_embedding = empty(execution, clip.context_length, width)
        self.transformer = Transformer(
            clip, execution, layers=clip.text_layers, width=width, heads=clip.text_heads, causal=True
        )
        self.norm_after = whole_norm(clip, execution, width)
        self.projection = empty(execution, width, clip.embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.nn.functional.embedding(tokens, self.token_embedding) + self.position_embedding[: tokens.shape[1]]
        x = self.transformer(x.transpose(0, 1).contiguous())
        at_end = x[tokens.argmax(dim=1), torch.arange(x.shape[1], device=x.device)]
        return self.norm_after(at_end) @ self.projection
