"""Why one layout loses to another: the part of the step's time that decides, in words and numbers."""

from __future__ import annotations

from launcher.plan.figures import Estimate
from launcher.plan.terms import TERMS, seconds
from launcher.tables import cell, size


def rounded_seconds(found: Estimate) -> float:
    """The step's time with four digits: layouts that differ by less are equally fast, and the smaller one is better."""
    return float(f"{found.step.total_seconds:.4g}")


def peak(found: Estimate) -> int:
    """Bytes of the fullest stage."""
    return max(stage.memory.peak for stage in found.stages)


def why_it_loses(loser: Estimate, winner: Estimate) -> str:
    """One sentence on what the slower of two layouts loses by, and what it gains elsewhere."""
    more = {term.field: getattr(loser.step, term.field) - getattr(winner.step, term.field) for term in TERMS}
    if rounded_seconds(loser) == rounded_seconds(winner):
        return _as_fast(loser, winner)
    decisive = max(TERMS, key=lambda term: more[term.field])
    lost = getattr(loser.step, decisive.field)
    won = getattr(winner.step, decisive.field)
    said = f"{decisive.name} {seconds(lost - won)} more"
    if decisive.field == "bubble_seconds":
        said += f" ({share(lost, loser)} of the step against {share(won, winner)})"
    else:
        said += f" ({seconds(lost)} against {seconds(won)})"
    said += _cause(decisive.field, loser, winner)
    gained = min(TERMS, key=lambda term: more[term.field])
    if -more[gained.field] > 0.25 * more[decisive.field]:
        said += f"; {gained.name} {seconds(-more[gained.field])} less"
    return said


def share(part: float, of: Estimate) -> str:
    """A part of the step's time in per cent."""
    return f"{100 * part / of.step.total_seconds:.1f} %"


def _as_fast(loser: Estimate, winner: Estimate) -> str:
    more = peak(loser) - peak(winner)
    if more > 0:
        return f"as fast, with {size(more)} more memory a rank ({size(peak(loser))} against {size(peak(winner))})"
    return "as fast, as large"


_WORSE: dict[str, tuple[tuple[str, int], ...]] = {
    "compute_seconds": (("micro-batch", -1), ("TP", 1), ("PP", 1)),  # of many stages the last one has the head's work
    "recompute_seconds": (("recompute", 0), ("TP", 1), ("micro-batch", -1)),
    "tensor_seconds": (("TP", 1), ("sequence parallel", -1), ("recompute", 0), ("micro-batch", -1)),
    "pipeline_seconds": (("VPP", 1), ("PP", 1), ("micro-batch", -1)),
    "bubble_seconds": (("VPP", -1), ("PP", 1), ("micro-batches", -1)),
    "data_seconds": (("ZeRO", 0), ("TP", -1), ("PP", -1), ("DP", 1)),
    "optimizer_seconds": (("ZeRO", 0), ("TP", -1), ("PP", -1), ("DP", -1)),
}
"""A part of the step -> what of a layout makes it longer: more of it (1), less of it (-1), or something else (0)."""


def _cause(field: str, loser: Estimate, winner: Estimate) -> str:
    """What of the layout makes the difference, where one thing or two do."""
    here, there = _traits(loser), _traits(winner)
    said = []
    for name, worse in _WORSE.get(field, ()):
        one, other = here[name], there[name]
        if one == other or (isinstance(one, int) and isinstance(other, int) and worse * (one - other) < 0):
            continue
        said.append(f"{name} {cell(one)}, not {cell(other)}")
    return f": {' and '.join(said[:2])}" if said else ""


def _traits(found: Estimate) -> dict[str, int | str]:
    layout = found.parallel
    return {
        "TP": layout.tensor,
        "PP": layout.pipeline,
        "VPP": layout.virtual_pipeline,
        "DP": found.replicas,
        "micro-batch": found.micro_batch_size,
        "micro-batches": found.micro_batches,
        "recompute": found.recompute,
        "ZeRO": layout.zero_stage,
        "sequence parallel": layout.sequence,
    }
