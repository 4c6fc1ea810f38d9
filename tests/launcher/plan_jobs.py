"""Jobs for plans: shipped shapes and toy ones, on nodes that need not exist."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cluster.config import ClusterConfig
from data_pipeline.batching import BatchConfig
from launcher.job import Job, job_of
from training.recipe import Recipe


def decoder(preset: str = "gpt3-1.3b", *, nodes: int = 1, ranks: int = 8, **sections: dict[str, Any]) -> Job:
    """A preset's job: 512 samples a step in micro-batches of 1, ZeRO 1, and what `sections` say."""
    batch = {"global_batch_size": 512, "micro_batch_size": 1}
    document = {
        "model": {"preset": preset},
        "batch": batch,
        "training": {"steps": 100},
        "cluster": {"nodes": nodes, "ranks_per_node": ranks},
    }
    for name, values in sections.items():
        document[name] = {**document.get(name, {}), **values}  # type: ignore[dict-item]
    return job_of(document)


def pairs(preset: str = "clip-vit-b-32", *, nodes: int = 1, ranks: int = 8, micro_batch_size: int = 256) -> Job:
    """A CLIP's job with 8,192 pairs a step."""
    return decoder(
        preset,
        nodes=nodes,
        ranks=ranks,
        batch={"global_batch_size": 8192, "micro_batch_size": micro_batch_size},
    )


def changed(job: Job, **recipe: Any) -> Job:
    """The job with sections of its recipe replaced."""
    return Job(replace(job.recipe, **recipe), job.cluster)


def batched(job: Job, samples: int, micro_batch_size: int = 1) -> Job:
    """The job with another batch."""
    return changed(job, batch=BatchConfig(samples, micro_batch_size))


def on(recipe: Recipe, nodes: int, ranks: int = 8) -> Job:
    """A recipe on other nodes."""
    return Job(recipe, ClusterConfig(nodes=nodes, ranks_per_node=ranks))
