"""The same few queries at every evaluation, and what the features find for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from training.evaluation.drawing import Picture
from training.evaluation.pictures import Example, Found
from training.evaluation.retrieval import Retrieval
from training.evaluation.similarity import unit

FOUND = 5

Look = Callable[[int], Picture]
"""Number of a distinct picture → the picture, [H, W, 3] uint8."""


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` things, spread evenly."""
    taken = min(count, most)
    return [place * count // taken for place in range(taken)]


def pictures_for_texts(
    images: torch.Tensor,
    texts: torch.Tensor,
    pairs: torch.Tensor,
    retrieval: Retrieval,
    captions: Sequence[str],
    look: Look,
    most: int = 8,
) -> list[Example]:
    """Up to `most` texts, each with the five pictures most like it. Features, pairs and ranks as in `retrieve`."""
    together = set(map(tuple, pairs.tolist()))
    examples = []
    for text in spread(len(texts), most):
        cosines, nearest = _most_like(texts[text], images)
        found = [Found(look(i), (i, text) in together, c) for c, i in zip(cosines, nearest, strict=True)]
        examples.append(Example(captions[text], found, int(retrieval.text_to_image.ranks[text])))
    return examples


def texts_for_pictures(
    images: torch.Tensor,
    texts: torch.Tensor,
    pairs: torch.Tensor,
    retrieval: Retrieval,
    captions: Sequence[str],
    look: Look,
    most: int = 8,
) -> list[Example]:
    """Up to `most` pictures, each with the five texts most like it."""
    together = set(map(tuple, pairs.tolist()))
    examples = []
    for image in spread(len(images), most):
        cosines, nearest = _most_like(images[image], texts)
        found = [Found(captions[t], (image, t) in together, c) for c, t in zip(cosines, nearest, strict=True)]
        examples.append(Example(look(image), found, int(retrieval.image_to_text.ranks[image])))
    return examples


def _most_like(query: torch.Tensor, gallery: torch.Tensor) -> tuple[list[float], list[int]]:
    cosines = (unit(query[None]) @ unit(gallery).T)[0]
    best, place = cosines.topk(min(FOUND, len(gallery)))
    return best.tolist(), place.tolist()
