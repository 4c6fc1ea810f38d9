"""What a kind of input offers to the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.mixed_stream import MixedStream
from training.recipe import Recipe

if TYPE_CHECKING:  # torch takes seconds to import, and shards are checked without it
    from training.engine import Engine


@dataclass(frozen=True)
class Seen:
    """What a look at a model in training found."""

    loss: float
    """On held-out data: what the best checkpoint has the lowest of."""
    figures: dict[str, float]
    """Under the names of metrics.jsonl, the loss included."""
    texts: list[tuple[str, str]] = field(default_factory=list)
    """(TensorBoard tag, Markdown)."""
    pictures: list[tuple[str, np.ndarray]] = field(default_factory=list)
    """(TensorBoard tag, uint8 `[height, width, 3]`)."""


class Looking(ABC):
    """Looks at a model in training."""

    @abstractmethod
    def look(self, step: int) -> Seen:
        """Collective: every rank calls it, every rank gets the figures; texts and pictures may be on rank 0 alone."""


class Inputs(ABC):
    """The kind of data that a recipe's model reads."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    on_host = False
    """Whether micro-batches stay in the host's memory until a model takes them, one after the other."""

    @abstractmethod
    def open(self, state: dict[str, Any] | None = None) -> MixedStream:
        """The recipe's stream, from its beginning or from where `state` is.

        Raises DataMismatch for other data than the state's, unless data.allow_change lets the run go on with them.
        """

    def locations(self) -> list[str]:
        """Folders and URLs of every shard set that the recipe names."""
        return [source.shards for source in [*self.recipe.data.mix, *self.recipe.data.validation]]

    @abstractmethod
    def check(self, stream: MixedStream) -> None:
        """Refuse held-out sets, or a model, that the stream's data do not fit. Raises RecipeError, BadShards."""

    @abstractmethod
    def tokenizer_sha256(self, path: Path) -> str:
        """What a tokenizer's file is known by among shards. Raises BadTokenizer."""

    @abstractmethod
    def arrays(self, stream: MixedStream) -> Callable[[Any], dict[str, np.ndarray]]:
        """From a batch of the stream to what the model is given of it, each `[n, …]`."""

    def counts(self, stream: MixedStream) -> dict[str, int]:
        """What this rank has counted since it was started, to be logged as sums over ranks."""
        return {}

    @abstractmethod
    def looking(self, engine: Engine, stream: MixedStream, alive: Callable[[], None]) -> Looking | None:
        """What is looked at between steps; None without held-out data. `alive` is called now and then."""
