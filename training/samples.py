"""Samples of text while a run trains, for the eyes of whoever watches it."""

from __future__ import annotations

from data_pipeline.tokenizer import Tokenizer
from modeling import groups
from modeling.gpt.generation import generate
from training.engine import Engine
from training.errors import RecipeError

_TOKENS = 64


def prompt_tokens(tokenizer: Tokenizer, prompt: str, document_masks: bool) -> list[int]:
    """What a model continues as `prompt`: after the end of the text before, as in training, or where documents were
    kept apart with nothing before it.

    Raises RecipeError for a prompt without a token where that can be no prompt.
    """
    tokens = tokenizer.encode(prompt)
    if not document_masks:
        return [tokenizer.eod_id, *tokens]
    if not tokens:
        raise RecipeError(
            "the prompt is empty, and with data.document_masks how a document begins is not learned; give its beginning"
        )
    return tokens


class Sampler:
    """Continues `prompt` with the weights in training; without a prompt it does nothing."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, prompt: str | None, *, document_masks: bool) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._tokens = [] if prompt is None else prompt_tokens(tokenizer, prompt, document_masks)
        length = engine.inputs.model_config.sequence_length
        if len(self._tokens) + 1 > length:
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
        room = self._engine.inputs.model_config.sequence_length - len(self._tokens)
        drawn = generate(
            model,
            self._tokens,
            max_new_tokens=min(_TOKENS, room),
            temperature=0.8,
            top_p=0.95,
            seed=seed,
            eod_id=self._tokenizer.eod_id,
        )
        text = self._prompt + self._tokenizer.decode(list(drawn))
        return "\n".join(f"    {line}" for line in text.splitlines())
