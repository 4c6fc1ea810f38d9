"""Predicted and measured peaks, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from launcher.tables import size, table
from tests.distributed.memory_cases import Case, document_of
from training.memory import rank_memory
from training.recipe import parse_recipe


@dataclass(frozen=True)
class Row:
    """One rank of one case; bytes."""

    case: str
    rank: int
    stage: int
    predicted: int
    measured: int
    moment: str
    """When the peak comes by formula, and really."""

    @property
    def ratio(self) -> float:
        return self.predicted / self.measured


def rows_of(
    case: Case, ranks: Sequence[dict[str, Any]], device: Literal["cpu", "cuda"], scale: int = 1
) -> Iterable[Row]:
    """What was measured on each rank of a case beside its formula."""
    recipe = parse_recipe(document_of(case, len(ranks), scale))
    for found in ranks:
        expected = rank_memory(recipe, len(ranks), found["stage"], device=device)
        running, stepping = found["forward and backward"], found["optimizer step"]
        really = "step" if stepping > running else "forward or backward"
        yield Row(
            name_of(case),
            found["rank"],
            found["stage"],
            expected.peak + (expected.host if device == "cpu" else 0),  # on a CPU the host is the device
            max(running, stepping),
            f"{expected.moment} | {really}",
        )


def name_of(case: Case) -> str:
    """A case in a few words."""
    layout = " ".join(f"{key} {value}" for key, value in case["layout"].items())
    recompute = "" if case["recompute"] == "none" else f", recompute {case['recompute']}"
    return f"{case['model']}, {layout}, {case['precision']}{recompute}, {case['micro_batches']} micro-batches"


def table_of(rows: Sequence[Row]) -> str:
    """Empty without rows."""
    if not rows:
        return ""
    shown = [
        (row.case, row.rank, row.stage, size(row.predicted), size(row.measured), f"{row.ratio:.3f}", row.moment)
        for row in rows
    ]
    return table(("case", "rank", "stage", "predicted", "measured", "ratio", "peak in"), shown)
