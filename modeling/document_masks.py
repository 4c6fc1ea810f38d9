"""Packed samples whose documents know nothing of one another: from the number of each token's document, what a position
may see, where it stands, and which targets count.
"""

from __future__ import annotations

import torch
from torch import Tensor


def positions(documents: Tensor) -> Tensor:
    """Each token's place in its document, `[b, s]` int64, from 0.

    documents: `[b, s]`, growing by one where the next document of a sample begins.
    """
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - torch.where(begins, places, 0).cummax(dim=1).values


def predicted(documents: Tensor) -> Tensor:
    """True where the next token is of the same document, `[b, s]`, for `documents` `[b, s + 1]`."""
    return documents[:, 1:] == documents[:, :-1]


def attention_mask(documents: Tensor, band: int | None, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores: 0 where a position may look, minus infinity elsewhere.

    A number and not a boolean: torch would make one of the other in every layer, and keep each until backward.

    Args:
        documents: `[b, s]`, the document of each position.
        band: what locally banded layers see, where a model has such.
        dtype: of the activations.

    Returns:
        `[b, 1, s, s]`, causal within each document; with a band `[b, 2, s, s]`, the second for the banded layers.
    """
    s = documents.shape[1]
    visible = (documents[:, :, None] == documents[:, None, :])[:, None]
    kinds = torch.stack([_within(s, s, width, documents.device) for width in ((None, band) if band else (None,))])
    return _added(visible & kinds, dtype)


def band_mask(s: int, t: int, band: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same for the last `s` of `t` positions of one document, each of which sees itself and the `band` - 1 before:
    `[1, 1, s, t]`.
    """
    return _added(_within(s, t, band, device)[None, None], dtype)


def _within(s: int, t: int, band: int | None, device: torch.device) -> Tensor:
    """True where position i of the last `s` of `t` positions sees position j: i - band < j <= i."""
    i = torch.arange(t - s, t, device=device)[:, None]
    j = torch.arange(t, device=device)[None, :]
    return j <= i if band is None else (j <= i) & (j > i - band)


def _added(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)
