"""The layouts that a job could run with on its nodes: all of them, legal or not to `training.recipe.check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from launcher.job import Job
from modeling.errors import ModelError
from training.config import ParallelConfig

Recompute = Literal["none", "selective", "full"]
ZeroStage = Literal[0, 1, 2, 3]


@dataclass(frozen=True)
class Candidate:
    """What the search varies of a job; everything else stays as the recipe has it."""

    parallel: ParallelConfig
    micro_batch_size: int
    recompute: Recompute

    def of(self, job: Job) -> Job:
        """The job with this layout."""
        recipe = job.recipe
        return replace(
            job,
            recipe=replace(
                recipe,
                parallel=self.parallel,
                batch=replace(recipe.batch, micro_batch_size=self.micro_batch_size),
                training=replace(recipe.training, recompute=self.recompute),
            ),
        )

    @property
    def values(self) -> dict[str, object]:
        """Dotted key -> value of all that a candidate decides."""
        layout = self.parallel
        return {
            "parallel.tensor": layout.tensor,
            "parallel.pipeline": layout.pipeline,
            "parallel.virtual_pipeline": layout.virtual_pipeline,
            "parallel.sequence": layout.sequence,
            "parallel.zero_stage": layout.zero_stage,
            "parallel.offload_optimizer": layout.offload_optimizer,
            "batch.micro_batch_size": self.micro_batch_size,
            "training.recompute": self.recompute,
        }


def as_it_is(job: Job) -> Candidate:
    """The layout that the recipe itself has."""
    return Candidate(job.recipe.parallel, job.recipe.batch.micro_batch_size, job.recipe.training.recompute)


def overrides(job: Job, to: Candidate) -> str:
    """What to set to make the job a candidate; empty where it is that already."""
    return written(as_it_is(job).values, to.values)


def written(here: Mapping[str, object], there: Mapping[str, object]) -> str:
    """The dotted overrides that make of the values that are here those that are there."""
    return " ".join(f"--{key} {_written(value)}" for key, value in there.items() if here[key] != value)


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def divisions(job: Job) -> Iterator[ParallelConfig]:
    """Every way to divide the model over the ranks: TP inside a node, PP, chunks a stage, sequence parallel or not."""
    for tensor in divisors(job.cluster.ranks_per_node):
        for pipeline in divisors(job.world_size // tensor):
            # At least a layer a chunk; a model without stages has no `num_layers` and goes no further than one.
            most = getattr(job.recipe.model, "num_layers", pipeline) // pipeline if pipeline > 1 else 1
            for chunks in range(1, max(most, 1) + 1):
                plain = replace(
                    job.recipe.parallel, tensor=tensor, pipeline=pipeline, virtual_pipeline=chunks, sequence=False
                )
                if not _divides(job, plain):
                    if chunks == 1:
                        break  # where whole stages do not come out even, parts of them do not either
                    continue
                yield plain
                split = replace(plain, sequence=True)
                if tensor > 1 and _divides(job, split):
                    yield split


def _divides(job: Job, layout: ParallelConfig) -> bool:
    try:
        job.recipe.model.check_layout(replace(layout, zero_stage=1))
    except ModelError:
        return False
    return True


def candidates(job: Job) -> Iterator[list[Candidate]]:
    """Runs of candidates that differ in nothing but the micro-batch size, which grows."""
    for division in divisions(job):
        replicas = division.data_parallel(job.world_size)
        sizes = divisors(-(-job.recipe.batch.global_batch_size // replicas))
        # Of one replica nothing can be divided: stages 2 and 3 would be stage 1 once more.
        for stage in get_args(ZeroStage)[: 2 if replicas == 1 else None]:
            layout = replace(division, zero_stage=stage)
            for recompute in get_args(Recompute):
                yield [Candidate(layout, size, recompute) for size in sizes]


def divisors(number: int) -> list[int]:
    """Ascending, 1 and the number itself among them."""
    low = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return [*low, *(number // d for d in reversed(low) if d * d != number)]
