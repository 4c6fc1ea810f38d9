"""Where a run is: what a checkpoint has to say besides weights and moments, so that a resumed run is the same run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class Position:
    """The run's counters after a step; JSON in a checkpoint's manifest."""

    step: int = 0
    """Optimizer steps taken, skipped ones included."""
    samples: int = 0
    """Samples consumed."""
    optimizer_steps: int = 0
    """Updates applied (Adam's counter)."""
    skipped_steps: int = 0
    """Steps left out because the gradient was not finite."""
    skipped_in_a_row: int = 0
    spikes: int = 0
    """Times the run went back because of a loss spike."""
    loss_mean: float | None = None
    """Running mean of the loss (decay 0.99), against which spikes are judged."""
    best_validation_loss: float | None = None
    validations_without_gain: int = 0
    validation_loss: float | None = None
    """Of a validation at this very step, else null; the checkpoint with the lowest is kept."""
    useful_seconds: float = 0.0
    """Time in steps that were kept, over all attempts."""
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Position:
        """Unknown keys, of a later version, are kept in `extra`."""
        known = {f.name for f in fields(cls)}
        extra = {key: value for key, value in values.items() if key not in known}
        return cls(
            **{key: value for key, value in values.items() if key in known} | ({"extra": extra} if extra else {})
        )

    def validated(self, loss: float) -> bool:
        """Take note of a validation at this step; whether it is the best so far."""
        self.validation_loss = loss
        best = math.isfinite(loss) and (self.best_validation_loss is None or loss < self.best_validation_loss)
        if best:
            self.best_validation_loss = loss
        self.validations_without_gain = 0 if best else self.validations_without_gain + 1
        return best

    def is_spike(self, loss: float, factor: float) -> bool:
        """Whether `loss` stands out of its running mean; takes note of it otherwise. One that is not finite is neither:
        its step has been skipped, and in the mean it would hide every later spike.
        """
        if not math.isfinite(loss):
            return False
        if self.loss_mean is not None and loss > factor * self.loss_mean:
            return True
        self.loss_mean = loss if self.loss_mean is None else 0.99 * self.loss_mean + 0.01 * loss
        return False
