"""Whether a run may continue from a checkpoint: the same model, on the data that it was reading."""

from __future__ import annotations

from data_pipeline.stream import Stream
from training.checkpoint import Checkpoint, CheckpointMismatch
from training.recipe import Recipe, to_document


def check_continues(checkpoint: Checkpoint, recipe: Recipe, stream: Stream) -> None:
    """Raises CheckpointMismatch for another model, DataMismatch for other data; `stream` was given the checkpoint's
    exceptions.
    """
    saved = checkpoint.state["recipe"]["model"]
    mine = to_document(recipe)["model"]
    different = [key for key in sorted(saved.keys() | mine.keys()) if saved.get(key) != mine.get(key)]
    if different:
        what = ", ".join(f"model.{key} was {saved.get(key)} and is {mine.get(key)}" for key in different)
        raise CheckpointMismatch(f"{checkpoint.path} holds another model: {what}; set it back, or start a new run")
    if checkpoint.state["data"] is not None:
        stream.check_state(checkpoint.state["data"])
