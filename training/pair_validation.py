"""Held-out pairs, looked at on any number of ranks alike: the contrastive loss over whole sets, and what the recipe's
`evaluation:` section asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from data_pipeline.config import DataConfig, ShardSource
from data_pipeline.pairs.tokenizers import CaptionTokenizer
from data_pipeline.pairs.validation import PairValidationSet
from training.errors import RecipeError
from training.evaluation.config import EvaluationConfig
from training.evaluation.encode import Embed, Encoded, Team
from training.evaluation.retrieval import distinct
from training.evaluation.suite import Suite

Loss = Callable[[torch.Tensor, torch.Tensor, Sequence[torch.Tensor], Any, dist.ProcessGroup | None], Any]


@dataclass(frozen=True)
class PairValidation:
    """What a look at held-out pairs found."""

    loss: float
    """Nats; the mean over the held-out sets by their sizes, each as one batch of one picture for each caption: a
    caption that comes again would be a wrong answer. Without any set, minus the first score: lower is better.
    """
    figures: dict[str, float]
    pictures: list[tuple[str, np.ndarray]]


class PairValidator:
    """Evaluates up to `evaluation.samples` pairs of each held-out set (0: all).

    `index`, `count`, `group`: the data-parallel ranks that share the work. Construction and `run` are collective.
    Raises RecipeError for what could only fail later.
    """

    def __init__(
        self,
        model: Any,
        data: DataConfig,
        evaluation: EvaluationConfig,
        tokenizer: CaptionTokenizer,
        loss: Loss,
        *,
        micro_batch_size: int,
        index: int,
        count: int,
        group: dist.ProcessGroup | None,
        device: torch.device,
    ) -> None:
        self._model, self._loss = model, loss
        self._team = Team(index, count, group, device)
        self._sets = {source.shards: self._open(source.shards, data) for source in data.validation}
        names = [one.names[0] for one in self._sets.values()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise RecipeError(f'data.validation: two shard sets are named "{twice}"; name each once')
        self._suite = Suite(
            evaluation,
            {one.names[0]: location for location, one in self._sets.items()},
            lambda location: self._sets.get(location) or self._open(location, data),
            tokenizer,
            model.context_length,
            team=self._team,
            micro_batch_size=micro_batch_size,
        )

    def _open(self, location: str, data: DataConfig) -> PairValidationSet:
        shape = {"image_size": self._model.image_size, "context_length": self._model.context_length}
        return PairValidationSet([ShardSource(location)], data.cache, workers=data.images.workers, **shape)

    def run(
        self,
        embed: Embed,
        shared: Sequence[torch.Tensor],
        *,
        draw: bool,
        alive: Callable[[], None] = lambda: None,
    ) -> PairValidation:
        """Collective: every rank calls it, every rank gets the figures; pictures are made where `draw`.

        shared: the logarithm of the scale, and of a sigmoid loss the bias.
        """
        found = self._suite.run(embed, draw=draw, alive=alive)
        total = pairs = 0.0
        losses: dict[str, float] = {}
        for location, held_out in self._sets.items():
            encoded = found.encoded[location]
            loss = self._held_out_loss(encoded, shared)
            losses[f"validation_loss/{held_out.names[0]}"] = loss
            total, pairs = total + loss * len(encoded.texts), pairs + len(encoded.texts)
        if pairs:
            losses = {"validation_loss": total / pairs, **losses}
        overall = losses["validation_loss"] if pairs else -_first_score(found.figures)
        return PairValidation(overall, losses | found.figures, found.pictures)

    def _held_out_loss(self, encoded: Encoded, shared: Sequence[torch.Tensor]) -> float:
        """The loss of the first picture of each caption as one batch, each rank computing its part."""
        first, _ = distinct(encoded.captions)
        mine = self._team.slice_of(len(first))
        image = encoded.images[first[mine]].to(self._team.device)
        text = encoded.text_features[mine].to(self._team.device)
        known = [scalar.to(self._team.device) for scalar in shared]
        return float(self._loss(image, text, known, self._model, self._team.group))


def _first_score(figures: dict[str, float]) -> float:
    return next(value for name, value in figures.items() if name.endswith(("/top1", "/accuracy")))
