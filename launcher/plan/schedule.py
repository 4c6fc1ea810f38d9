"""What each pipeline stage does in a step, one thing after another, and when: for the time line of a plan.

The orders are those of megatron-core 0.16.1 (`pipeline_parallel/schedules.py`), which Trestle runs: 1F1B and the
interleaved schedule of Narayanan et al. 2021 (arXiv:2104.04473, figures 3 and 4), and without stages forward and
backward in turn. A family that couples its batch runs every micro-batch forward first, then each once more with its
backward pass (`training/engine/coupled.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from modeling.layout import Layout

Kind = Literal["forward", "backward"]


@dataclass(frozen=True)
class Work:
    """One pass of a micro-batch through one of a stage's chunks of layers."""

    kind: Kind
    micro_batch: int
    chunk: int


@dataclass(frozen=True)
class Event:
    """Work with its time, in seconds from the step's start."""

    work: Work
    begin: float
    end: float


def order(layout: Layout, stage: int, micro_batches: int, couples_batch: bool = False) -> list[Work]:
    """What pipeline stage `stage` does in a step of `micro_batches`, in order."""
    forwards, backwards = _passes(layout, micro_batches)
    if couples_batch and micro_batches > 1:
        again = [work for pair in zip(forwards, backwards, strict=True) for work in pair]
        return [*forwards, *again]
    warm = min(_warm_up(layout, stage), len(forwards))
    steady = [work for pair in zip(forwards[warm:], backwards, strict=False) for work in pair]
    return [*forwards[:warm], *steady, *backwards[len(forwards) - warm :]]


def _passes(layout: Layout, micro_batches: int) -> tuple[list[Work], list[Work]]:
    """All forward passes of a stage and all backward ones, each in their order: rounds of as many micro-batches as
    there are stages, and within a round chunk after chunk (Megatron Core's `get_schedule_table`).
    """
    chunks, size = layout.virtual_pipeline, layout.pipeline
    if chunks == 1:
        table = [(number, 0) for number in range(micro_batches)]
    else:
        table = [
            (number, chunk)
            for first in range(0, micro_batches, size)
            for chunk in range(chunks)
            for number in range(first, min(first + size, micro_batches))
        ]
    forwards = [Work("forward", number, chunk) for number, chunk in table]
    return forwards, [Work("backward", number, chunks - 1 - chunk) for number, chunk in table]


def _warm_up(layout: Layout, stage: int) -> int:
    """Forward passes before a stage's first backward one (Megatron Core's `get_pp_rank_microbatches`)."""
    after = layout.pipeline - stage - 1
    return after if layout.virtual_pipeline == 1 else 2 * after + (layout.virtual_pipeline - 1) * layout.pipeline


def simulate(
    layout: Layout,
    micro_batches: int,
    forward: Sequence[float],
    backward: Sequence[float],
    couples_batch: bool = False,
) -> list[list[Event]]:
    """The events of each stage, when each begins as soon as what it needs is there.

    forward, backward: seconds that a micro-batch takes through all chunks of each stage, one number a stage, its
    exchanges with the neighbours included: a stage takes part in them and does nothing else meanwhile.
    """
    stages, chunks = layout.pipeline, layout.virtual_pipeline
    seconds = {"forward": [s / chunks for s in forward], "backward": [s / chunks for s in backward]}
    waiting = [order(layout, stage, micro_batches, couples_batch) for stage in range(stages)]
    events: list[list[Event]] = [[] for _ in range(stages)]
    ended: dict[tuple[Kind, int, int], float] = {}
    moved = True
    while moved:
        moved = False
        for stage in range(stages):
            while len(events[stage]) < len(waiting[stage]):
                work = waiting[stage][len(events[stage])]
                ready = _ready(layout, stage, work, ended)
                if ready is None:
                    break
                begin = max(ready, events[stage][-1].end if events[stage] else 0.0)
                event = Event(work, begin, begin + seconds[work.kind][stage])
                events[stage].append(event)
                ended[work.kind, work.micro_batch, work.chunk * stages + stage] = event.end
                moved = True
    if any(len(done) < len(all_of) for done, all_of in zip(events, waiting, strict=True)):
        raise AssertionError("the schedule waits for itself")
    return events


def _ready(layout: Layout, stage: int, work: Work, ended: dict[tuple[Kind, int, int], float]) -> float | None:
    """When what `work` needs is there; None while it has not been computed."""
    here, last = work.chunk * layout.pipeline + stage, layout.pipeline * layout.virtual_pipeline - 1
    if work.kind == "backward" and here == last:
        return ended.get(("forward", work.micro_batch, here))
    before = here - 1 if work.kind == "forward" else here + 1
    return 0.0 if before < 0 else ended.get((work.kind, work.micro_batch, before))
