"""`trestle plan --search`: every legal layout on the given GPUs, the fastest ones, and why each loses to a better one.

Nothing is sampled: every layout that `training.recipe.check_layout` allows is estimated, but those whose micro-batch is
larger than one that did not fit.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.batching import BatchSchedule
from launcher.dry_run import check_anywhere
from launcher.errors import UserError
from launcher.job import Job
from launcher.plan.candidates import Candidate, as_it_is, candidates, overrides
from launcher.plan.estimate import estimate
from launcher.plan.figures import Estimate
from launcher.plan.hardware import Accelerator
from launcher.plan.reasons import peak, rounded_seconds, why_it_loses
from training.recipe import check_layout

SHOWN = 10
"""Layouts that are proposed."""


@dataclass(frozen=True)
class Proposal:
    """One of the fastest layouts."""

    overrides: str
    """To write behind `trestle train RECIPE`; empty for the recipe as it is."""
    loses_by: str
    """What decides against it, compared with the one before; empty for the first."""
    estimate: Estimate


@dataclass(frozen=True)
class Search:
    """What was tried, and what came out."""

    legal: int
    """Layouts that a training could start with."""
    fitting: int
    """Of those, how many fit into the GPUs' memory."""
    refused: dict[str, int]
    """Layouts that divide the model but that a start would refuse: why -> how many."""
    proposals: tuple[Proposal, ...]
    """The fastest first."""
    own: Proposal | None
    """The recipe's own layout, if it is legal: what the fastest is better by."""
    nearest: Proposal | None
    """Where nothing fits: the layout that is short of the least memory."""


BY_ENGINE = "ZeRO's stage does not go with a pipeline or the precision"
BY_RAMP = "batch.ramp alone forbids them, see --batch.ramp null"
BY_BATCH = "the batch does not come out even, or another key forbids them"


def search(job: Job, accelerator: Accelerator, most: int = SHOWN, **options: Any) -> Search:
    """Try all layouts of a job that is legal but for its layout; its vocabulary must be known.

    options: of `estimate`. Raises UserError where no layout is legal.
    """
    space = _Space(job)
    best: list[tuple[float, float, int, Estimate, Candidate]] = []
    numbers = itertools.count()
    least: Estimate | None = None
    nearest: Candidate | None = None
    for run in space.runs():
        too_large = False
        for candidate in run:
            # Of a single micro-batch no gradients of others are there beside it.
            if too_large and space.micro_batches(candidate) > 1:
                continue
            found = estimate(candidate.of(job), accelerator, every_stage=False, **options)
            too_large = not found.fits
            if too_large:
                if least is None or peak(found) < peak(least):
                    least, nearest = found, candidate
                continue
            space.fitting += 1
            # Negated: the heap's first is the worst of the best.
            heapq.heappush(best, (-rounded_seconds(found), -peak(found), -next(numbers), found, candidate))
            if len(best) > most:
                heapq.heappop(best)
    if not space.legal:
        raise UserError(_none_legal(job, space.refused))

    def propose(candidate: Candidate, found: Estimate, better: Estimate | None = None) -> Proposal:
        check_anywhere(candidate.of(job))
        why = why_it_loses(found, better) if better else ""
        return Proposal(overrides(job, candidate), why, estimate(candidate.of(job), accelerator, **options))

    ranked = [(candidate, found) for *_, found, candidate in sorted(best, key=lambda one: one[:3], reverse=True)]
    before = [None, *(found for _, found in ranked)]
    proposals = tuple(propose(*one, better) for one, better in zip(ranked, before, strict=False))
    own = None
    if ranked and not _refused(lambda: check_anywhere(job)):
        own = propose(as_it_is(job), estimate(job, accelerator, **options), ranked[0][1])
    short = propose(nearest, least) if least and nearest and not ranked else None
    return Search(space.legal, space.fitting, dict(space.refused), proposals, own, short)


class _Space:
    """All layouts of a job, and how many of them are legal, refused, and fit."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.sizes = BatchSchedule(job.recipe.batch, job.recipe.model.sequence_length).sizes()
        self.legal = self.fitting = 0
        self.refused: Counter[str] = Counter()

    def runs(self) -> Iterator[list[Candidate]]:
        """Legal layouts: runs that differ in nothing but the micro-batch, which grows."""
        for run in candidates(self.job):
            if not self._has_engine(run[0]):
                self.refused[BY_ENGINE] += len(run)
                continue
            legal = [candidate for candidate in run if self._is_legal(candidate, self.sizes)]
            self.legal += len(legal)
            whole = [self.job.recipe.batch.global_batch_size]
            for candidate in run if len(legal) < len(run) else ():
                if candidate not in legal:
                    by_ramp = len(self.sizes) > 1 and self._is_legal(candidate, whole)
                    self.refused[BY_RAMP if by_ramp else BY_BATCH] += 1
            yield legal

    def micro_batches(self, candidate: Candidate) -> int:
        """Of a step and rank."""
        replicas = candidate.parallel.data_parallel(self.job.world_size)
        return -(-self.job.recipe.batch.global_batch_size // (replicas * candidate.micro_batch_size))

    def _has_engine(self, candidate: Candidate) -> bool:
        """Whether ZeRO's stage goes with the pipeline and the precision: asked first, since it is cheap."""
        return not _refused(lambda: candidate.parallel.check_engine(self.job.recipe.training.precision))

    def _is_legal(self, candidate: Candidate, sizes: Sequence[int]) -> bool:
        return not _refused(lambda: check_layout(candidate.of(self.job).recipe, self.job.world_size, sizes))


def _refused(check: Callable[[], None]) -> bool:
    try:
        check()
    except Exception as error:
        if getattr(error, "exit_code", None) != 2:
            raise
        return True
    return False


def _none_legal(job: Job, refused: Counter[str]) -> str:
    batch, ranks = job.recipe.batch.global_batch_size, job.world_size
    if refused[BY_RAMP]:
        return (
            f"batch.ramp allows no layout on {ranks:,} GPUs, but without it {refused[BY_RAMP]:,} would do: give "
            "it a larger start and increment, or --batch.ramp null"
        )
    return (
        f"no layout of this model goes on {ranks:,} GPUs with batch.global_batch_size {batch:,}: choose a batch that "
        f"{ranks:,}, or {ranks:,} / (TP x PP), divides, or other --nodes and --gpus-per-node"
    )
