"""Samples of text while a run trains, for the eyes of whoever watches it."""

from __future__ import annotations

from data_pipeline.tokenizer import Tokenizer
from modeling import groups
from modeling.gpt.generation import generate
from training.engine import Engine
from training.errors import RecipeError

_TOKENS = 64


class Sampler:
    """Continues `prompt` with the weights in training; without a prompt it does nothing."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, prompt: str | None) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._prompt = prompt
        length = engine.inputs.model_config.sequence_length
        if prompt is not None and len(tokenizer.encode(prompt)) + 2 > length:
            raise RecipeError(
                f"training.sample_prompt fills model.sequence_length {length}; shorten it, or set it to null"
            )

    def sample(self, seed: int) -> str | None:
        """The prompt and its continuation, as Markdown, on the first replica's ranks; None elsewhere.

        Collective over the first tensor-parallel group; other ranks return at once.
        """
        if self._prompt is None or groups.coordinates().data != 0:
            return None
        (model,) = self._engine.chunks
        tokens = [self._tokenizer.eod_id, *self._tokenizer.encode(self._prompt)]
        room = self._engine.inputs.model_config.sequence_length - len(tokens)
        drawn = generate(
            model,
            tokens,
            max_new_tokens=min(_TOKENS, room),
            temperature=0.8,
            top_p=0.95,
            seed=seed,
            eod_id=self._tokenizer.eod_id,
        )
        text = self._prompt + self._tokenizer.decode(list(drawn))
        return "\n".join(f"    {line}" for line in text.splitlines())
