"""The parts of a step's time under the names that people read, in one order everywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A part of `estimate.StepTime`."""

    field: str
    name: str
    colour: str
    """Class of the page's style sheet."""
    meaning: str


TERMS = (
    Term("compute_seconds", "compute", "t-forward", "forward and backward passes of the slowest stage"),
    Term("recompute_seconds", "computed again", "t-recompute", "activations that backward needs and nobody kept"),
    Term("tensor_seconds", "TP traffic", "t-tensor", "sums and gathers among tensor-parallel ranks"),
    Term("pipeline_seconds", "PP traffic", "t-handover", "activations and their gradients from stage to stage"),
    Term("bubble_seconds", "bubble", "t-bubble", "waiting while the pipeline fills and empties"),
    Term("batch_loss_seconds", "loss of the batch", "t-loss", "one loss over the samples of all ranks"),
    Term("data_seconds", "DP traffic", "t-data", "gradients and weights among data-parallel ranks"),
    Term("optimizer_seconds", "optimizer", "t-optimizer", "AdamW on a rank's share of the state"),
)


MEMORY = ("weights", "gradients", "optimizer", "activations", "logits", "buffers")
"""Of `training.memory.RankMemory`: the parts of a rank's peak, in the order in which they are shown."""


def digits(value: float, count: int = 3) -> str:
    """`count` significant digits, at least 3; from a thousand on whole numbers, thousands apart. No exponents."""
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    if not 0 < abs(value) < 1e-4:
        return f"{value:.{count}g}"
    return f"{value:.{count - 1 - math.floor(math.log10(abs(value)))}f}".rstrip("0")


def seconds(value: float) -> str:
    """Seconds with three digits: 21.3 s, 940 ms, 41 us."""
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if abs(value) >= 0.9995 * unit:
            shown = value / unit
            return f"{shown:,.{0 if shown >= 99.95 else 1 if shown >= 9.995 else 2}f} {name}"
    return f"{value * 1e6:.0f} us" if value else "0 s"
