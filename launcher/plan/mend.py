"""What would make a layout fit: single changes of it, each tried."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from launcher.dry_run import check_anywhere
from launcher.job import Job
from launcher.plan.candidates import Candidate, as_it_is, divisors, overrides
from launcher.plan.estimate import estimate
from launcher.plan.hardware import Accelerator
from launcher.plan.reasons import peak


@dataclass(frozen=True)
class Mend:
    """A change that makes a job fit."""

    overrides: str
    peak_bytes: int
    """Of the fullest rank then."""
    step_seconds: float
    host_bytes: int = 0
    """Of a rank, on the host then."""


def mends(job: Job, accelerator: Accelerator, **options: Any) -> list[Mend]:
    """The single changes of the layout after which it fits and may start, the fastest first. options: `estimate`'s."""
    found = []
    for candidate in _changes(job):
        changed = candidate.of(job)
        try:
            check_anywhere(changed)
        except Exception as error:
            if getattr(error, "exit_code", None) != 2:
                raise
            continue
        then = estimate(changed, accelerator, **options)
        if then.fits:
            host = max(stage.memory.host for stage in then.stages)
            found.append(Mend(overrides(job, candidate), peak(then), then.step.total_seconds, host))
    return sorted(found, key=lambda mend: mend.step_seconds)


def _changes(job: Job) -> list[Candidate]:
    """The layout with one thing changed, to less memory."""
    here = as_it_is(job)
    layout, ranks = here.parallel, job.world_size
    changed = [replace(here, recompute=way) for way in ("selective", "full") if way != here.recompute]
    smaller = [n for n in divisors(here.micro_batch_size) if n < here.micro_batch_size]
    changed += [replace(here, micro_batch_size=n) for n in smaller[-1:]]
    if layout.tensor > 1 and not layout.sequence:
        changed.append(replace(here, parallel=replace(layout, sequence=True)))
    changed += [replace(here, parallel=replace(layout, zero_stage=n)) for n in (1, 2, 3) if n > layout.zero_stage]
    if not layout.offload_optimizer:
        changed.append(replace(here, parallel=replace(layout, offload_optimizer=True)))
    wider = [n for n in divisors(job.cluster.ranks_per_node) if n > layout.tensor][:1]
    changed += [replace(here, parallel=replace(layout, tensor=n, sequence=n > 1 and layout.sequence)) for n in wider]
    deeper = [n for n in divisors(ranks // layout.tensor) if n > layout.pipeline]
    changed += [replace(here, parallel=replace(layout, pipeline=n)) for n in deeper[:2]]
    return changed
