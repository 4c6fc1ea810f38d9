"""Steps that are checked, and bits that are flipped, on any layout. Runs on every rank of a launch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from modeling import groups
from tests.distributed import steps
from training.engine.base import Engine
from training.health.integrity import Integrity


def run_cases(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each case: losses and norms of steps that were not checked and of ones that were, and what was found where."""
    return [_run(case) for case in sorted(cases, key=lambda case: str(case["layout"]))]


def _run(case: dict[str, Any]) -> dict[str, Any]:
    plain, checked = steps.start(case), None
    curve = [steps.step(plain, steps.tokens_of_step(number)) for number in range(3)]
    steps.stop(plain)
    del plain
    checked = steps.start(case)
    integrity = Integrity(checked)
    same, found = [], {}
    for number in range(3):
        same.append(_checked_step(checked, integrity, number, case))
    if case["zero_stage"] < 3:
        for what in ("weight", "master", "nothing"):
            found[what] = _with_flip(checked, integrity, what, case)
    steps.stop(checked)
    return {"case": case, "plain": curve, "checked": same, "found": found}


def _checked_step(engine: Engine, integrity: Integrity, number: int, case: dict[str, Any]) -> tuple[float, float]:
    here = groups.coordinates()
    tokens = steps.tokens_of_step(number)
    mine = [{"tokens": micro} for micro in tokens.chunk(here.data_size)[here.data].split(steps.MICRO_BATCH)]
    if case["zero_stage"] < 3:
        assert integrity.replicas() is None
    with integrity.watching(keep=True):
        figures = engine.forward_backward(mine)
    assert integrity.recomputed(figures, lambda: engine.forward_backward(mine)) is None
    total = torch.zeros((), dtype=torch.float64)
    if groups.is_last_stage() and here.tensor == 0:
        total += sum(f["sample_losses"].double().sum() for f in figures)
    dist.all_reduce(total)
    return float(total) / len(tokens), engine.step(2e-3).grad_norm


def _with_flip(engine: Engine, integrity: Integrity, what: str, case: dict[str, Any]) -> list[Any] | None:
    """Flip a bit on the case's rank, check, and flip it back."""
    tensor: torch.Tensor | None = None
    if what == "weight":
        tensor = engine.inputs.shards[3][0].data.view(-1)[:1]
    elif what == "master":
        tensor = next(f.weight for f in engine.fragments() if f.weight.numel() > 8)[:1]
    mine = tensor is not None and dist.get_rank() == case["flip"]
    if tensor is not None and mine:
        flip(tensor)
    finding = integrity.replicas()
    if tensor is not None:
        if mine:
            flip(tensor)
        engine.publish()  # the check may have taken the masters' word
    return None if finding is None else [list(finding.ranks), finding.what]


def flip(tensor: torch.Tensor) -> None:
    """The lowest bit of the exponent, as a memory cell would."""
    kind, bit = (torch.int16, 7) if tensor.element_size() == 2 else (torch.int32, 23)
    tensor.view(kind).bitwise_xor_(1 << bit)
