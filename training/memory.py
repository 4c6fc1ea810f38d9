"""What a rank's memory is filled with at the moment when it holds most, by formula: without torch, in microseconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from modeling.registry import family
from training.config import ParallelConfig
from training.footprint import state_bytes, width
from training.recipe import Recipe


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank of a pipeline stage at the moment of its peak."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    host: int = 0
    """An offloaded optimizer: on the host instead, and not in the peak."""
    moment: Literal["forward", "backward", "step"] = "backward"
    """When the peak comes."""

    @property
    def peak(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.buffers


def rank_memory(recipe: Recipe, world_size: int, stage: int, parallel: ParallelConfig | None = None) -> RankMemory:
    """The memory of any rank of pipeline stage `stage`; `parallel` replaces the recipe's layout.

    Raises ModelError while the vocabulary is not known, or where the layout does not divide the ranks.
    """
    layout, training, batch = parallel or recipe.parallel, recipe.training, recipe.batch
    replicas = layout.data_parallel(world_size)
    micro_batches = -(-batch.global_batch_size // (replicas * batch.micro_batch_size))
    footprint = family(recipe.model.family).footprint(recipe.model, layout, stage, training.recompute)
    state = state_bytes(footprint, layout, training.precision, replicas)
    kept = footprint.activations * batch.micro_batch_size * width(training.precision)
    memory = RankMemory(
        weights=state.weights,
        gradients=state.gradients,
        optimizer=state.optimizer,
        activations=round(kept * layout.in_flight(stage, micro_batches)),
        logits=0,
        buffers=0,
    )
    if layout.offload_optimizer:
        return replace(memory, gradients=0, optimizer=0, host=state.gradients + state.optimizer)
    return memory
