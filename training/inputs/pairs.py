"""Pictures with captions: a contrastive batch, held-out loss, retrieval, zero-shot classification and probes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.mixed_stream import MixedStream
from data_pipeline.pairs.stream import PairStream
from data_pipeline.pairs.tokenizers import CaptionTokenizer, open_caption_tokenizer
from modeling import groups
from modeling.registry import family
from training.engine import Engine
from training.errors import RecipeError
from training.inputs.base import Inputs, Looking, Seen
from training.pair_validation import PairValidator


class PairInputs(Inputs):
    """Shards of image-text pairs. A rank's share of 32,768 pictures is gigabytes: it stays on the host."""

    on_host = True

    def open(self, state: dict[str, Any] | None = None) -> PairStream:
        data, seed, model = self.recipe.data, self.recipe.run.seed, self.recipe.model
        shape = {"image_size": model.image_size, "context_length": model.context_length}
        return PairStream(data, seed, **shape) if state is None else PairStream.continuing(data, seed, state, **shape)

    def locations(self) -> list[str]:
        asked = self.recipe.evaluation
        probes = [shards for task in asked.probe for shards in (task.train, task.test)]
        return [*super().locations(), *(task.shards for task in asked.zero_shot), *probes]

    def check(self, stream: MixedStream) -> None:
        """The stream has opened what is trained on; what is held out is opened here, and its captions are read."""
        assert isinstance(stream, PairStream)
        batch = self.recipe.batch.global_batch_size
        if stream.samples < batch:
            raise RecipeError(
                f"batch.global_batch_size is {batch}, but data.mix holds {stream.samples} pairs: a batch would hold "
                f"pairs twice, each the other's wrong answer; use {stream.samples} at most"
            )
        if self.recipe.looks:
            self.validator(stream.caption_tokenizer(), alone=True)

    def tokenizer_sha256(self, path: Path) -> str:
        return open_caption_tokenizer(path).sha256

    def arrays(self, stream: MixedStream) -> Callable[[Any], dict[str, np.ndarray]]:
        return lambda batch: batch.arrays()

    def counts(self, stream: MixedStream) -> dict[str, int]:
        assert isinstance(stream, PairStream)
        return {"substituted_pictures": stream.substituted_pictures}

    def looking(self, engine: Engine, stream: MixedStream, alive: Callable[[], None]) -> Looking | None:
        assert isinstance(stream, PairStream)
        if not self.recipe.looks:
            return None
        return _PairLooking(engine, self.validator(stream.caption_tokenizer()), alive)

    def validator(self, tokenizer: CaptionTokenizer, *, alone: bool = False) -> PairValidator:
        """What looks at held-out pairs; collective over the data-parallel ranks, unless this process is `alone`.

        Raises RecipeError, BadShards and DamagedShard.
        """
        recipe = self.recipe
        here = groups.Coordinates(0, 0, 0, 1) if alone else groups.coordinates()
        return PairValidator(
            recipe.model,
            recipe.data,
            recipe.evaluation,
            tokenizer,
            family(recipe.model.family).implementation.held_out_loss,
            micro_batch_size=recipe.batch.micro_batch_size,
            index=here.data,
            count=here.data_size,
            group=None if alone else groups.data_group(),
            device=torch.device("cpu") if alone else groups.device(),
        )


class _PairLooking(Looking):
    def __init__(self, engine: Engine, validator: PairValidator, alive: Callable[[], None]) -> None:
        self._engine, self._validator, self._alive = engine, validator, alive

    def look(self, step: int) -> Seen:
        def embed(images: torch.Tensor | None, tokens: torch.Tensor | None) -> Any:
            return self._engine.outputs(images, tokens)[:2]

        first = torch.distributed.get_rank() == 0
        found = self._validator.run(embed, self._engine.shared_scalars(), draw=first, alive=self._alive)
        return Seen(found.loss, found.figures, pictures=found.pictures)
