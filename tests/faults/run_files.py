"""What a run has left in its folder, and whether two runs are the same to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from training.checkpoint import Checkpoint, candidates
from training.checkpoint.format import step_of
from training.metrics.events import read_events

SAME = ("loss", "grad_norm", "learning_rate", "parameter_norm", "samples", "epochs/network", "epochs/tools")
"""Figures of a step that a fault must not change in the last bit. The loss is that of the step's own samples, which no
other batch has; the epochs count what has been drawn of each corpus.
"""


class RunFiles:
    """A run's folder as tests look at it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """All events, or those of one name, in order."""
        return [e for e in read_events(self.path / "events.jsonl") if name in (None, e["event"])]

    def figures(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    def last_step(self) -> int:
        """The step of the last whole line of metrics.jsonl, 0 before the first."""
        try:
            lines = (self.path / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return 0
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def steps_saved(self) -> list[int]:
        """Steps of the checkpoints that have their name, oldest first."""
        return sorted(step_of(path.name) or 0 for path in candidates(self.checkpoints))

    def newest(self) -> Checkpoint:
        return Checkpoint(candidates(self.checkpoints)[0])

    def half_written(self) -> list[str]:
        """Names of folders in which a checkpoint is being written, or was when its writer died."""
        return [path.name for path in self.checkpoints.glob(".step-*.partial")]


def assert_same_run(found: RunFiles, wanted: RunFiles) -> None:
    """Each step once, every step's figures and the last checkpoint's weights and moments equal to the bit."""
    mine, theirs = found.figures(), wanted.figures()
    assert [line["step"] for line in mine] == [line["step"] for line in theirs] == list(range(1, len(theirs) + 1))
    for line, other in zip(mine, theirs, strict=True):
        assert {key: line[key] for key in SAME} == {key: other[key] for key in SAME}
    assert_same_weights(found.newest(), wanted.newest())


def assert_same_weights(found: Checkpoint, wanted: Checkpoint) -> None:
    assert found.step == wanted.step and found.names() == wanted.names() and len(found.names()) > 10
    for name in found.names():
        for kind in ("weight", "exp_avg", "exp_avg_sq"):
            assert torch.equal(found.tensor(name, kind), wanted.tensor(name, kind)), f"{kind} of {name}"
