"""Linear probe: logistic regression on frozen features, as Radford et al. 2021, appendix A.3.

There, scikit-learn's L-BFGS runs for at most 1,000 iterations, and the strength of the L2 penalty is searched on a
validation split over 1e-6 … 1e6 in steps of an eighth of a decade: first at 1e-6, 1e-4, …, 1e6, then around the best at
half the distance, until neighbours are one step apart. The final classifier learns from training and validation split
together. Unlike there, the features are the embeddings that the loss sees, not those before the last projection.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.errors import RecipeError

STEPS_PER_DECADE = 8
_LOWEST, _HIGHEST, _DECADES_APART = -6, 6, 2
_ITERATIONS = 1000
_VALIDATION = 5  # every fifth of a class

Share = Callable[[Callable[[float], float], Sequence[float]], list[float]]
"""(function, arguments) → results; what runs it may divide the arguments over ranks."""


def alone(function: Callable[[float], float], arguments: Sequence[float]) -> list[float]:
    """The `Share` of one process."""
    return [function(argument) for argument in arguments]


@dataclass(frozen=True)
class Probe:
    """What a linear probe found."""

    accuracy: float
    """On the test set."""
    c: float
    """scikit-learn's C that the sweep chose: the inverse of the penalty's strength."""
    validation_accuracy: float
    """What the sweep chose it for."""
    tried: tuple[float, ...]
    """Every C of the sweep, ascending."""


def probe(
    train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, truth: torch.Tensor, *, share: Share = alone
) -> Probe:
    """Learns from features `[n, d]` labelled `[n]` and is measured on features `[m, d]` labelled `[m]`.

    Raises RecipeError for one class only, or too few examples of each to hold any out.
    """
    x, y = _numpy(train), labels.cpu().numpy()
    x_test, y_test = _numpy(test), truth.cpu().numpy()
    if len(np.unique(y)) < 2:
        raise RecipeError("the training set of a linear probe has one class only; it needs pictures of two or more")
    held_out = validation_split(y)
    if not held_out.any():
        raise RecipeError(
            "the training set of a linear probe has one picture of each class, so none can be held out to choose the "
            "penalty by; use a set with more pictures, or raise evaluation.samples"
        )
    kept = ~held_out
    c, score, tried = sweep(lambda one: _fit_and_score(x[kept], y[kept], x[held_out], y[held_out], one), share)
    # One rank's work, told to all: ranks on unlike machines would else go on with unlike figures.
    accuracy = share(lambda one: _fit_and_score(x, y, x_test, y_test, one), [c])[0]
    return Probe(accuracy, c, score, tried)


def sweep(score: Callable[[float], float], share: Share = alone) -> tuple[float, float, tuple[float, ...]]:
    """(the best C, its score, all that were tried).

    Of several that are best, as on a set that is easy for many, the middle one: the paper does not say which.
    """
    last = (_HIGHEST - _LOWEST) * STEPS_PER_DECADE
    step = _DECADES_APART * STEPS_PER_DECADE
    scores: dict[int, float] = {}
    ask = list(range(0, last + 1, step))
    while True:
        found = share(score, [_c(place) for place in ask])
        scores |= dict(zip(ask, found, strict=True))
        peak = [place for place in sorted(scores) if scores[place] == max(scores.values())]
        best = peak[(len(peak) - 1) // 2]
        if step == 1:
            return _c(best), scores[best], tuple(_c(place) for place in sorted(scores))
        step //= 2
        ask = [place for place in (best - step, best + step) if 0 <= place <= last]


def validation_split(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[n] True for what is held out: every fifth example of each class, the last one of a class with two to four."""
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        held_out[places[_VALIDATION - 1 :: _VALIDATION] if len(places) >= _VALIDATION else places[1:][-1:]] = True
    return held_out


def _fit_and_score(
    x: NDArray[np.float32], y: NDArray[np.int64], x_test: NDArray[np.float32], y_test: NDArray[np.int64], c: float
) -> float:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the paper, too, stops after 1,000 iterations
        model = LogisticRegression(C=c, solver="lbfgs", max_iter=_ITERATIONS).fit(x, y)
    return float((model.predict(x_test) == y_test).mean())


def _c(place: int) -> float:
    return float(10.0 ** (_LOWEST + place / STEPS_PER_DECADE))


def _numpy(features: torch.Tensor) -> NDArray[np.float32]:
    return features.detach().float().cpu().numpy()
