"""What a rank's memory is filled with at the moment when it holds most, by formula: without torch, in microseconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from modeling.memory import Activations, Run, walk
from modeling.registry import family
from training.config import ParallelConfig
from training.engine_memory import EngineMemory, engine_memory
from training.footprint import width
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


def rank_memory(
    recipe: Recipe,
    world_size: int,
    stage: int,
    parallel: ParallelConfig | None = None,
    *,
    device: Literal["cpu", "cuda"] = "cuda",
) -> RankMemory:
    """The memory of any rank of pipeline stage `stage`; `parallel` replaces the recipe's layout. On another `device`
    other kernels run, which keep other things (see `modeling.memory`).

    Raises ModelError while the vocabulary is not known, or where the layout does not divide the ranks.
    """
    layout, training, batch = parallel or recipe.parallel, recipe.training, recipe.batch
    replicas = layout.data_parallel(world_size)
    micro_batches = -(-batch.global_batch_size // (replicas * batch.micro_batch_size))
    chosen, element = family(recipe.model.family), width(training.precision)
    footprint = chosen.footprint(recipe.model, layout, stage, training.recompute)
    there = engine_memory(footprint, layout, training.precision, replicas, device)
    documents = recipe.data.document_masks
    run = Run(batch.micro_batch_size, element, training.recompute, device, training.compile, documents)
    kept = chosen.activations(recipe.model, layout, stage, run)
    held = _Filled(there, kept.buffers + micro_batches * kept.inputs)
    moments = [
        *_backward(kept, run, held, layout.in_flight(stage, micro_batches), micro_batches),
        held.moment(
            "step",
            there.gradients,
            logits=kept.logits,
            buffers=there.step + there.buffers * (there.until != "micro-batch"),
        ),
    ]
    return max(moments, key=lambda moment: moment.peak)


@dataclass(frozen=True)
class _Filled:
    """What is there at every moment."""

    engine: EngineMemory
    resident: float

    def moment(
        self,
        when: Literal["forward", "backward", "step"],
        gradients: float,
        *,
        activations: float = 0.0,
        logits: float = 0.0,
        buffers: float = 0.0,
        gathered: int = 0,
    ) -> RankMemory:
        """The same and what a moment has beside."""
        return RankMemory(
            weights=self.engine.weights + gathered,
            gradients=round(gradients),
            optimizer=self.engine.optimizer,
            activations=round(activations),
            logits=round(logits),
            buffers=round(self.resident + buffers),
            host=self.engine.host,
            moment=when,
        )


def _backward(kept: Activations, run: Run, held: _Filled, in_flight: float, micro_batches: int) -> Iterator[RankMemory]:
    """The moments of a stage's first backward pass and of later ones: with each of its chunks, while gradients are
    reduced after it, and in the forward pass of a loss before it.
    """
    there = held.engine
    passes = len(kept.chunks) * in_flight  # of a micro-batch through a chunk
    a_pass = sum(chunk.held for chunk in kept.chunks) / len(kept.chunks)
    turns = [(there.first, passes, there.gradients * there.allocated, there.buffers * (there.until == "end"), 0.0)]
    if micro_batches > 1:
        together = min(passes, len(kept.chunks) * micro_batches - 1)
        before = there.buffers * (there.until != "micro-batch")
        turns.append((there.later, together, there.gradients, before, kept.handed))
    for gradients, together, accumulated, before, handed in turns:
        others = (together - 1) * a_pass
        for chunk in kept.unlike:
            moment = walk(chunk, gradients)
            yield held.moment(
                "backward",
                accumulated + moment.gradients,
                activations=others + moment.activations,
                logits=kept.logits,
                buffers=there.buffers + handed + run.scratch,
                gathered=there.gathered,
            )
        buffers = there.buffers + there.reducing
        yield held.moment("backward", there.gradients, activations=others, logits=kept.logits, buffers=buffers)
        yield held.moment(
            "forward",
            accumulated,
            activations=others + kept.chunks[-1].held,
            logits=kept.logits + kept.logits_work,
            buffers=before + 2 * handed,
            gathered=there.gathered,
        )
