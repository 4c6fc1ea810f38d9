"""What can go wrong with a stored checkpoint, and which exit code each kind of trouble deserves."""

from __future__ import annotations

from training.errors import RecipeError, TrainingError


class DamagedCheckpoint(TrainingError):
    """A checkpoint is not what its writer left: `file` names the file, `what` says what is wrong with it."""

    def __init__(self, checkpoint: object, file: str, what: str) -> None:
        self.file = file
        self.what = what
        super().__init__(f"checkpoint {checkpoint} is damaged: {file}: {what}")


class SaveFailed(TrainingError):
    """A checkpoint could not be written (disk full, I/O error, another rank missing); older ones are untouched."""


class UnknownFormat(RecipeError):
    """The checkpoint was written in a format that this version does not read."""


class CheckpointMismatch(RecipeError):
    """The checkpoint does not hold what was asked of it: no such tensor, another shape, or elements missing."""
