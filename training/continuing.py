"""Whether a run may continue from a checkpoint: the same model, on the data that it was reading."""

from __future__ import annotations

from data_pipeline.mixed_stream import MixedStream
from training.checkpoint import Checkpoint, CheckpointMismatch
from training.inputs import inputs_of
from training.recipe import Recipe, to_document

_FIXED = (
    "training.precision",
    "data.document_masks",
    *(f"optimizer.{key}" for key in ("betas", "eps", "weight_decay", "clip_grad_norm")),
)
"""What the moments and the losses so far depend on."""

_OLDER = {"data.document_masks": False}
"""What a checkpoint was trained with that was written before the key existed."""


def _check_arithmetic(checkpoint: Checkpoint, recipe: Recipe) -> None:
    saved, mine = checkpoint.state["recipe"], to_document(recipe)
    for key in _FIXED:
        section, name = key.split(".")
        before = saved.get(section, {}).get(name, _OLDER.get(key))
        if before != mine[section][name] and before is not None:
            raise CheckpointMismatch(
                f"{checkpoint.path} was trained with {key} {before}, and the recipe has {mine[section][name]}; set it "
                "back, or start a new run"
            )


def stream_of(recipe: Recipe, checkpoint: Checkpoint | None) -> MixedStream:
    """The recipe's stream, from where the checkpoint's is. Raises DataMismatch for other data than the checkpoint's,
    unless data.allow_change lets the run go on with them.
    """
    return inputs_of(recipe).open(None if checkpoint is None else checkpoint.state["data"])


def check_continues(checkpoint: Checkpoint, recipe: Recipe, stream: MixedStream) -> None:
    """Raises CheckpointMismatch for another model, DataMismatch for other data; `stream` was given the checkpoint's
    exceptions.
    """
    saved = checkpoint.state["recipe"]["model"]
    mine = to_document(recipe)["model"]
    different = [key for key in sorted(saved.keys() | mine.keys()) if saved.get(key) != mine.get(key)]
    if different:
        what = ", ".join(f"model.{key} was {saved.get(key)} and is {mine.get(key)}" for key in different)
        raise CheckpointMismatch(f"{checkpoint.path} holds another model: {what}; set it back, or start a new run")
    _check_arithmetic(checkpoint, recipe)
    if checkpoint.state["data"] is not None:
        stream.check_state(checkpoint.state["data"])
