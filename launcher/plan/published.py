"""Predicted against reported: runs that others have published.

    python -m launcher.plan.published

Reported is the time of a step, as it is printed or as it follows from a printed rate by the source's own formula.
What a source does not say (micro-batch, chunks a stage) is what the planner finds fastest. A few runs chose the two
constants `Efficiency.sustained`. Of others the system's habits were set by hand while their own table was looked at:
they are no test of the planner alone. The rest is held out, and Trestle's own runs stand apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from cluster.config import ClusterConfig
from data_pipeline.batching import BatchConfig
from data_pipeline.config import DataConfig
from launcher.job import Job
from launcher.plan.efficiency import Efficiency
from launcher.plan.estimate import Estimate, estimate
from launcher.plan.habits import Habits
from launcher.plan.hardware import accelerator
from launcher.tables import table
from training.config import CheckpointConfig, OptimizerConfig, ParallelConfig, RunConfig, TrainingConfig
from training.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """One published measurement."""

    name: str
    source: str
    gpu: str
    gpus: int
    model: Any
    """The config class of its family."""
    parallel: ParallelConfig
    batch: int
    seconds: float
    """Reported, of a step."""
    habits: Habits | None
    """None: Trestle's own."""
    micro_batch: int | None = None
    recompute: Literal["none", "selective", "full"] = "none"
    compiled: bool = False
    free_chunks: bool = False
    """Nothing says how many chunks a stage has."""
    calibrates: bool = False
    """Whether it took part in choosing a constant."""
    by_hand: bool = False
    """Whether shares of its habits were set with its own table at hand."""
    network: float | None = None
    """Bytes a second and GPU between nodes, where it is not the usual node's."""

    @property
    def part(self) -> str:
        """What it had to do with the planner's figures: a key of `PARTS`."""
        if self.habits is None:
            return "own"
        return "chose a constant" if self.calibrates else "habits by hand" if self.by_hand else "held out"


PARTS = {
    "chose a constant": "runs that chose two constants",
    "habits by hand": "runs with habits set by hand, their own table in view",
    "held out": "runs held out",
    "own": "runs of Trestle itself",
}


@dataclass(frozen=True)
class Row:
    """A measurement with its prediction."""

    run: Run
    predicted_seconds: float
    mfu: float
    micro_batch: int
    chunks: int

    @property
    def error(self) -> float:
        """Of the predicted time: 0.1 is ten per cent too long."""
        return self.predicted_seconds / self.run.seconds - 1


def predict(run: Run, efficiency: Efficiency | None = None) -> Row:
    """What the planner would have said; `efficiency` replaces the default's."""
    tried = [_estimate(run, samples, chunks, efficiency) for samples in _micro_batches(run) for chunks in _chunks(run)]
    best = min(tried, key=lambda one: one.step.total_seconds)
    chunks = best.parallel.virtual_pipeline
    return Row(run, best.step.total_seconds, best.mfu, best.micro_batch_size, chunks)


def _micro_batches(run: Run) -> list[int]:
    if run.micro_batch is not None:
        return [run.micro_batch]
    share = run.batch * run.parallel.model_parallel // run.gpus
    return [size for size in (1, 2, 4, 8) if share % size == 0]


def _chunks(run: Run) -> list[int]:
    parallel = run.parallel
    if not run.free_chunks or parallel.pipeline == 1:
        return [parallel.virtual_pipeline]
    layers: int = run.model.num_layers // parallel.pipeline
    return [chunks for chunks in range(1, layers + 1) if layers % chunks == 0]


def _estimate(run: Run, micro_batch: int, chunks: int, efficiency: Efficiency | None) -> Estimate:
    gpu = accelerator(run.gpu)
    if run.network is not None:
        gpu = replace(gpu, network_bandwidth=run.network)
    recipe = Recipe(
        run=RunConfig(name=run.name),
        model=run.model,
        data=DataConfig(),
        batch=BatchConfig(run.batch, micro_batch),
        optimizer=OptimizerConfig(),
        parallel=replace(run.parallel, virtual_pipeline=chunks),
        training=TrainingConfig(steps=1, recompute=run.recompute, compile=run.compiled),
        checkpoint=CheckpointConfig(),
    )
    nodes = max(1, run.gpus // 8)
    job = Job(recipe, ClusterConfig(nodes=nodes, ranks_per_node=run.gpus // nodes))
    return estimate(job, gpu, habits=run.habits, efficiency=efficiency)


def rows() -> list[Row]:
    """All published runs."""
    from launcher.plan.published_runs import RUNS

    return [predict(run) for run in RUNS]


def lines(found: Iterable[Row] | None = None) -> list[str]:
    """A table, the errors by what a run had to do with the planner, their spread by recomputation, and the sources."""
    found = list(rows() if found is None else found)
    cells = [
        (
            row.run.name,
            row.run.gpus,
            row.run.gpu,
            row.run.seconds,
            row.predicted_seconds,
            f"{row.error:+.1%}",
            f"{row.mfu:.1%}",
            "" if row.run.part == "held out" else row.run.part,
        )
        for row in found
    ]
    heading = ("run", "GPUs", "GPU", "reported s", "predicted s", "error", "MFU predicted", "")
    said = [table(heading, cells), ""]
    for part, what in PARTS.items():
        errors = [abs(row.error) for row in found if row.run.part == part]
        if errors:
            said.append(
                f"{len(errors)} {what}: error {statistics.mean(errors):.1%} on average, {max(errors):.1%} at most"
            )
    sources = dict.fromkeys(f"{row.run.name.split()[0]}: {row.run.source}" for row in found)
    return [*said, "", *_spread(found), "", *sources]


def _spread(found: Sequence[Row]) -> list[str]:
    """Errors with their sign, by accelerator and by what is computed again: where the planner leans to one side."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in sorted(found, key=lambda row: (row.run.gpu, row.run.recompute)):
        groups.setdefault((row.run.gpu, row.run.recompute), []).append(row.error)
    return [
        f"{gpu}, recompute {again}: {len(errors)} runs, {min(errors):+.1%} to {max(errors):+.1%}, "
        f"{statistics.mean(errors):+.1%} on average (+: planned too slow)"
        for (gpu, again), errors in groups.items()
    ]


if __name__ == "__main__":
    print("\n".join(lines()))
