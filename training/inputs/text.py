"""Packed tokens: next-token prediction, validation in nats and bits, samples of text."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.mixed_stream import MixedStream
from data_pipeline.stream import Stream, ValidationSet
from training.errors import RecipeError
from training.inputs.base import Inputs, Looking, Seen

if TYPE_CHECKING:  # torch takes seconds to import, and shards are checked without it
    from training.engine import Engine
    from training.samples import Sampler
    from training.validation import Validator


class TextInputs(Inputs):
    """Shards of packed tokens."""

    def open(self, state: dict[str, Any] | None = None) -> Stream:
        data, seed = self.recipe.data, self.recipe.run.seed
        return Stream(data, seed) if state is None else Stream.continuing(data, seed, state)

    def check(self, stream: MixedStream) -> None:
        wanted = self.recipe.model.sequence_length
        opened: dict[str, MixedStream | ValidationSet] = {"data.mix": stream}
        if self.recipe.data.validation:
            opened["data.validation"] = ValidationSet(self.recipe.data.validation, self.recipe.data.cache)
        for name, data in opened.items():
            if data.sequence_length != wanted:
                raise RecipeError(
                    f"{name} has samples of {data.sequence_length} tokens, but model.sequence_length is {wanted}; set "
                    f"it to {data.sequence_length}, or prepare the shards again"
                )
            if data.tokenizer_sha256 != stream.tokenizer_sha256:
                raise RecipeError(f"{name} was made with another tokenizer than data.mix; prepare them together")

    def tokenizer_sha256(self, path: Path) -> str:
        return sha256(path.read_bytes()).hexdigest()

    def arrays(self, stream: MixedStream) -> Callable[[Any], dict[str, np.ndarray]]:
        from training.batches import token_arrays

        eod_id = self._eod_id(stream)
        return lambda batch: token_arrays(batch, eod_id)

    def looking(self, engine: Engine, stream: MixedStream, alive: Callable[[], None]) -> Looking | None:
        from training.samples import Sampler
        from training.validation import Validator

        recipe = self.recipe
        assert isinstance(stream, Stream)
        tokenizer = stream.tokenizer()
        masks = recipe.data.document_masks
        # Also without held-out data: a prompt that cannot be is refused at the start.
        sampler = Sampler(engine, tokenizer, recipe.training.sample_prompt, document_masks=masks)
        if not recipe.data.validation:
            return None
        interleaved = recipe.parallel.virtual_pipeline > 1
        validator = Validator(
            engine.evaluate,
            engine.device,
            recipe.data.validation,
            tokenizer.token_bytes,
            micro_batch_size=recipe.batch.micro_batch_size,
            samples=recipe.training.validation_samples,
            rounds=recipe.parallel.pipeline if interleaved else 1,
            alive=alive,
            eod_id=self._eod_id(stream),
            cache=recipe.data.cache,
        )
        return _TextLooking(validator, sampler)

    def _eod_id(self, stream: MixedStream) -> int | None:
        """The token that ends documents, where they are kept apart."""
        assert isinstance(stream, Stream)
        return stream.tokenizer().eod_id if self.recipe.data.document_masks else None


class _TextLooking(Looking):
    def __init__(self, validator: Validator, sampler: Sampler) -> None:
        self._validator, self._sampler = validator, sampler

    def look(self, step: int) -> Seen:
        found = self._validator.run()
        text = self._sampler.sample(seed=step)
        return Seen(found.loss, found.figures(), [] if text is None else [("sample", text)])
