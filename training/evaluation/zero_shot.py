"""Zero-shot classification: a picture's class is the one whose texts it is most like (Radford et al. 2021, 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from training.errors import RecipeError
from training.evaluation.similarity import TIE, spans, unit

_ROWS = 4096


@dataclass(frozen=True)
class ZeroShot:
    """How well pictures were classified."""

    labels: torch.Tensor
    """[n] int64: the true classes."""
    predictions: torch.Tensor
    """[n] int64: the classes chosen; where others tie with the true one, one of those."""
    top1: float
    """Share of the pictures whose class alone is the most similar."""
    top5: float | None
    """Share with fewer than five other classes at least as similar; None where there are no more than five classes."""
    mean_per_class: float
    """Mean over the classes that have pictures of each one's share of right predictions."""
    classes: int

    def figures(self) -> dict[str, float]:
        """Under the names of metrics.jsonl, without prefix."""
        found = {"top1": self.top1, "mean_per_class": self.mean_per_class}
        return found if self.top5 is None else found | {"top5": self.top5}


def prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """The texts of every class, templates changing fastest: `[classes * templates]`."""
    return [template.replace("{}", name) for name in classes for template in templates]


def class_weights(features: torch.Tensor, classes: int) -> torch.Tensor:
    """`[classes, d]` at length 1: the mean of each class's text features, themselves taken at length 1.

    `features`: `[classes * templates, d]`, in the order of `prompts`.
    """
    each = unit(features, "text features")
    if classes < 1 or len(each) % classes:
        raise ValueError(f"{len(each)} texts for {classes} classes")
    return unit(each.view(classes, -1, each.shape[1]).mean(1), "class features")


def labels_of(
    captions: Sequence[str], classes: Sequence[str], templates: Sequence[str] = (), *, what: str = "zero-shot"
) -> torch.Tensor:
    """[n] int64: the class of each caption, which is its name or what a template makes of it; case and spacing do not
    count.

    Raises RecipeError for a caption that is of no class or of several, and where all are of one class. `what`: whose
    captions they are, for messages.
    """
    known: dict[str, set[int]] = {}
    for number, name in enumerate(classes):
        for text in prompts([name], templates):
            known.setdefault(_plain(text), set()).add(number)
    known |= {_plain(name): {number} for number, name in enumerate(classes)}
    labels: list[int] = []
    for caption in captions:
        found = known.get(_plain(caption), set())
        if not found:
            raise RecipeError(
                f'{what}: the caption "{_short(caption)}" is none of the {len(classes)} class names '
                f'("{_short(classes[0])}", "{_short(classes[1])}", …), nor what a template makes of one; '
                "add the class, or the template that the captions were written with"
            )
        if len(found) > 1:
            several = " and ".join(f'"{classes[number]}"' for number in sorted(found)[:2])
            raise RecipeError(f'{what}: the caption "{_short(caption)}" could be of the classes {several}')
        labels.extend(found)
    if len(set(labels)) == 1:
        raise RecipeError(
            f'{what}: all {len(labels)} pictures are of the class "{_short(classes[labels[0]])}", so a model that '
            "always says so would score 100 %; use pictures of several classes"
        )
    return torch.tensor(labels, dtype=torch.int64)


def classify(images: torch.Tensor, weights: torch.Tensor, labels: torch.Tensor) -> ZeroShot:
    """Scores pictures `[n, d]` with class weights `[classes, d]` against labels `[n]`.

    Similarities exist for 4,096 pictures at a time. Works where the features are; the result is on the CPU.
    Raises ValueError for sizes that do not fit, or a single class.
    """
    images, weights = unit(images, "image features"), unit(weights, "class features")
    labels = labels.to(images.device)
    count, classes = len(images), len(weights)
    if classes < 2:
        raise ValueError("one class only: there is nothing to choose between")
    if not count or labels.shape != (count,):
        raise ValueError(f"{count} pictures with {len(labels)} labels")
    predictions = torch.empty_like(labels)
    ahead = torch.empty_like(labels)
    for rows in spans(count, _ROWS):
        scores = images[rows] @ weights.T
        own = labels[rows, None]
        true = scores.gather(1, own)
        scores.scatter_(1, own, -torch.inf)
        ahead[rows] = (scores >= true - TIE).sum(1)
        predictions[rows] = torch.where(ahead[rows] == 0, labels[rows], scores.argmax(1))
    right = ahead == 0
    pictures = torch.bincount(labels, minlength=classes)
    hits = torch.bincount(labels[right], minlength=classes)
    present = pictures > 0
    return ZeroShot(
        labels=labels.cpu(),
        predictions=predictions.cpu(),
        top1=float(right.double().mean()),
        top5=float((ahead < 5).double().mean()) if classes > 5 else None,
        mean_per_class=float((hits[present].double() / pictures[present]).mean()),
        classes=classes,
    )


def confusion(labels: torch.Tensor, predictions: torch.Tensor, classes: int) -> torch.Tensor:
    """`[classes, classes]` int64: how many pictures of each class (rows) were taken for each class (columns)."""
    return torch.bincount(labels * classes + predictions, minlength=classes * classes).view(classes, classes)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:59] + "…"
