"""Predicted against reported: runs that others have published.

    python -m launcher.plan.published

Reported is the time of a step, as it is printed or as it follows from a printed rate by the source's own formula.
What a source does not say (micro-batch, chunks a stage) is what the planner finds fastest. A few runs chose the two
constants `Efficiency.sustained`; all others are held out.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
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
    network: float | None = None
    """Bytes a second and GPU between nodes, where it is not the usual node's."""


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
    """A table, the errors of those that chose a constant and of all others, and the sources."""
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
            "chose a constant" if row.run.calibrates else "",
        )
        for row in found
    ]
    heading = ("run", "GPUs", "GPU", "reported s", "predicted s", "error", "MFU predicted", "")
    said = [table(heading, cells), ""]
    for what, calibrates in (("that chose two constants", True), ("held out", False)):
        errors = [abs(row.error) for row in found if row.run.calibrates == calibrates]
        if errors:
            said.append(
                f"{len(errors)} runs {what}: error {statistics.mean(errors):.1%} on average, {max(errors):.1%} at most"
            )
    sources = dict.fromkeys(f"{row.run.name.split()[0]}: {row.run.source}" for row in found)
    return [*said, "", *sources]


if __name__ == "__main__":
    print("\n".join(lines()))
