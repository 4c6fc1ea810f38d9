"""Retrieval: the text of a picture among all texts, and the picture of a text among all pictures.

Equal captions are one text, and equal pictures one picture. What belongs together is then a relation: a picture may
have several texts, a text several pictures, and any of them counts as right.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from training.evaluation.similarity import TIE, TILE, spans, unit

DEPTHS = (1, 5, 10)


@dataclass(frozen=True)
class Ranks:
    """Where the first right answer to each query stood."""

    ranks: torch.Tensor
    """[queries] int64, 1 is best: one more than the wrong answers that are at least as similar as the best right one.
    """
    gallery: int
    """How many answers there are to choose from."""

    def recall(self, depth: int) -> float | None:
        """Share of the queries with a right answer among the first `depth`; None where there are no more than that."""
        return float((self.ranks <= depth).double().mean()) if self.gallery > depth else None

    def figures(self, direction: str) -> dict[str, float]:
        """Under the names of metrics.jsonl, without prefix: `DIRECTION_r1`, …"""
        recalls = {f"{direction}_r{depth}": self.recall(depth) for depth in DEPTHS}
        ranks = self.ranks.double()
        return {name: value for name, value in recalls.items() if value is not None} | {
            f"{direction}_median_rank": float(ranks.quantile(0.5)) if len(ranks) < 1 << 24 else float(ranks.median()),
            f"{direction}_mean_rank": float(ranks.mean()),
        }


@dataclass(frozen=True)
class Retrieval:
    """Both directions."""

    image_to_text: Ranks
    text_to_image: Ranks

    def figures(self) -> dict[str, float]:
        return self.image_to_text.figures("image_to_text") | self.text_to_image.figures("text_to_image")


def distinct(items: Sequence[Hashable]) -> tuple[list[int], torch.Tensor]:
    """(where each distinct item stands first, [n] int64: which of those each item equals), in order of appearance."""
    numbers: dict[Hashable, int] = {}
    first: list[int] = []
    which: list[int] = []
    for place, item in enumerate(items):
        if item not in numbers:
            numbers[item] = len(first)
            first.append(place)
        which.append(numbers[item])
    return first, torch.tensor(which, dtype=torch.int64)


def retrieve(images: torch.Tensor, texts: torch.Tensor, pairs: torch.Tensor, *, tile: int = TILE) -> Retrieval:
    """Ranks in both directions among distinct pictures `[p, d]` and distinct texts `[t, d]`.

    `pairs`: `[k, 2]` int64, (picture, text) that belong together; each picture and each text has to occur. Cosines
    exist for `tile` x `tile` at a time. Ties with a right answer are lost: features that are all the same rank last.
    Works where the features are; the result is on the CPU. Raises ValueError for sizes that do not fit.
    """
    images, texts = unit(images, "image features"), unit(texts, "text features")
    pairs = pairs.to(images.device).unique(dim=0)  # sorted by picture
    for side, size, name in ((0, len(images), "picture"), (1, len(texts), "text")):
        known = pairs[:, side].unique()
        if len(known) != size or not size or int(known[0]) != 0 or int(known[-1]) != size - 1:
            raise ValueError(f"not each {name} of {size} has its counterpart")
    best_text, best_image = _best(images, texts, pairs, tile)
    image_ahead = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    text_ahead = torch.zeros(len(texts), dtype=torch.int64, device=images.device)
    starts = torch.searchsorted(pairs[:, 0].contiguous(), torch.arange(len(images) + 1, device=images.device)).tolist()
    for rows in spans(len(images), tile):
        mine = pairs[starts[rows.start] : starts[rows.stop]]
        for columns in spans(len(texts), tile):
            scores = images[rows] @ texts[columns].T
            right = mine[(mine[:, 1] >= columns.start) & (mine[:, 1] < columns.stop)]
            scores[right[:, 0] - rows.start, right[:, 1] - columns.start] = -torch.inf
            image_ahead[rows] += (scores >= best_text[rows, None] - TIE).sum(1)
            text_ahead[columns] += (scores >= best_image[columns] - TIE).sum(0)
    return Retrieval(Ranks(image_ahead.cpu() + 1, len(texts)), Ranks(text_ahead.cpu() + 1, len(images)))


def _best(
    images: torch.Tensor, texts: torch.Tensor, pairs: torch.Tensor, tile: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest cosine that a right answer has, per picture and per text."""
    best_text = images.new_full((len(images),), -torch.inf)
    best_image = images.new_full((len(texts),), -torch.inf)
    for rows in spans(len(pairs), tile):
        image, text = pairs[rows].unbind(1)
        scores = (images[image] * texts[text]).sum(1)
        best_text.scatter_reduce_(0, image, scores, "amax")
        best_image.scatter_reduce_(0, text, scores, "amax")
    return best_text, best_image
