"""The stages of a pipeline, of which at most three differ: what each holds, computes and sends in one micro-batch.

Remembered by their values, since a search asks for the same stage thousands of times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from launcher.plan.compute import ComputeSeconds, Device, compute_seconds
from launcher.plan.links import Links
from launcher.plan.times import StageTimes, stage_times
from modeling.footprint import Footprint
from modeling.layout import Layout
from modeling.registry import family
from modeling.work import Work
from training.recipe import Recipe


class _Model:
    """A config, equal to another if they say the same: configs themselves can be changed, and have no hash."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.said = repr(config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Model) and self.said == other.said

    def __hash__(self) -> int:
        return hash(self.said)


@dataclass(frozen=True)
class _Axes:
    """A layout that cannot be changed."""

    tensor: int
    pipeline: int
    virtual_pipeline: int
    sequence: bool

    def layout(self) -> Layout:
        return Layout(self.tensor, self.pipeline, self.virtual_pipeline, self.sequence)


def all_stages(recipe: Recipe, device: Device, ways: Links) -> Sequence[StageTimes]:
    """The times of every stage; raises ModelError while the vocabulary is not known."""
    parallel, model = recipe.parallel, _Model(recipe.model)
    axes = _Axes(parallel.tensor, parallel.pipeline, parallel.virtual_pipeline, parallel.sequence)
    recompute: str = recipe.training.recompute
    alone = recompute == "selective" and device.habits.attention_only
    kinds = {}
    for stage in like(parallel.pipeline):
        footprint, numel, trained = _footprint(model, axes, stage, "none" if alone else recompute)
        again = "attention" if alone else recompute
        samples, documents = recipe.batch.micro_batch_size, _documents(recipe)
        compute = _compute(model, axes, stage, samples, again, documents, trained, device)
        kinds[stage] = stage_times(
            footprint,
            numel,
            trained,
            compute,
            parallel,
            recipe.batch.micro_batch_size,
            "none" if alone else recompute,
            device,
            ways,
        )
    return [kinds[stands_for(stage, parallel.pipeline)] for stage in range(parallel.pipeline)]


def like(pipeline: int) -> list[int]:
    """Stages that differ: the first, the last and one between them."""
    return sorted({0, min(1, pipeline - 1), pipeline - 1})


def stands_for(stage: int, pipeline: int) -> int:
    """The stage of `like` that is as this one."""
    return stage if stage in (0, pipeline - 1) else 1


@lru_cache(maxsize=1024)
def _footprint(model: _Model, axes: _Axes, stage: int, recompute: str) -> tuple[Footprint, int, int]:
    """With its parameters and those that are trained."""
    config = model.config
    footprint = family(config.family).footprint(config, axes.layout(), stage, recompute)
    return footprint, footprint.numel, sum(p.numel for p in footprint.parameters if p.trainable)


@lru_cache(maxsize=4096)
def _compute(
    model: _Model,
    axes: _Axes,
    stage: int,
    samples: int,
    recompute: str,
    documents: bool,
    trained: int,
    device: Device,
) -> ComputeSeconds:
    return compute_seconds(_work(model, axes, stage, samples, recompute, documents), trained, device)


def frozen(config: Any) -> int:
    """Parameters, and running statistics, of a whole model that are not trained."""
    _, numel, trained = _footprint(_Model(config), _Axes(1, 1, 1, False), 0, "none")
    return numel - trained


def whole_model(recipe: Recipe) -> Work:
    """One sample through the model as one rank would compute it."""
    return _work(_Model(recipe.model), _Axes(1, 1, 1, False), 0, 1, recipe.training.recompute, _documents(recipe))


def _documents(recipe: Recipe) -> bool:
    return recipe.data.document_masks and family(recipe.model.family).reads == "text"


@lru_cache(maxsize=64)
def _work(model: _Model, axes: _Axes, stage: int, samples: int, recompute: str, documents: bool) -> Work:
    work = family(model.config.family).work(model.config, axes.layout(), stage, samples, recompute)
    return work.by_document() if documents else work
