"""What a rank's memory is filled with at the moment when it holds most, by formula: without torch, in microseconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from modeling.activations import Activations, Gradients, Run, walk
from modeling.footprint import Footprint
from modeling.registry import family
from training.config import ParallelConfig
from training.footprint import (
    FP32,
    LIVE_NUMEL,
    PERSISTENT_NUMEL,
    REDUCE_BUCKET,
    StateBytes,
    state_bytes,
    touched,
    width,
)
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
    other kernels run, which keep other things (see `modeling.activations`).

    Raises ModelError while the vocabulary is not known, or where the layout does not divide the ranks.
    """
    layout, training, batch = parallel or recipe.parallel, recipe.training, recipe.batch
    replicas = layout.data_parallel(world_size)
    micro_batches = -(-batch.global_batch_size // (replicas * batch.micro_batch_size))
    chosen, element = family(recipe.model.family), width(training.precision)
    footprint = chosen.footprint(recipe.model, layout, stage, training.recompute)
    state = state_bytes(footprint, layout, training.precision, replicas)
    run = Run(batch.micro_batch_size, element, training.recompute, device, training.compile)
    kept = chosen.activations(recipe.model, layout, stage, run)
    there = _Engine(layout.zero_stage, element, footprint, state, replicas, device)
    resident = kept.buffers + micro_batches * kept.inputs
    moments = [
        *_forward_and_backward(kept, there, layout, stage, micro_batches, resident),
        RankMemory(
            weights=state.weights,
            gradients=there.own_gradients,
            optimizer=state.optimizer,
            activations=0,
            logits=round(kept.logits),
            buffers=round(resident + there.step_buffers),
            moment="step",
        ),
    ]
    return max(moments, key=lambda moment: moment.peak)


@dataclass(frozen=True)
class _Engine:
    """What an engine adds: where gradients accumulate, and what DeepSpeed 0.19.8 copies beside."""

    zero_stage: int
    element: int
    footprint: Footprint
    state: StateBytes
    replicas: int
    device: str

    @property
    def bf16(self) -> bool:
        return self.element < FP32

    @property
    def trained(self) -> int:
        return sum(p.numel for p in self.footprint.parameters if p.trainable)

    @property
    def bucket(self) -> int:
        """Elements that are reduced together, and copied for it."""
        return min(REDUCE_BUCKET, self.trained)

    @property
    def partition(self) -> int:
        """Elements of this rank's part of the gradients."""
        return self.state.optimizer // (3 * FP32)

    def accumulated(self, first: bool) -> int:
        """Bytes of gradients that are there during a micro-batch: of those before it, or allocated for all."""
        if first and (self.zero_stage in (0, 2) or (self.zero_stage == 1 and not self.bf16)):
            return 0
        return self.own_gradients

    @property
    def own_gradients(self) -> int:
        """Bytes of gradients once they are accumulated: in fp32 ZeRO 2 keeps parameters whole that lie across two
        ranks' parts.
        """
        if self.zero_stage == 2 and not self.bf16:
            return FP32 * touched(self.footprint, self.replicas)
        return self.state.gradients

    def gradients(self, first: bool) -> Gradients:
        """Of a micro-batch."""
        if self.zero_stage == 1 and self.bf16:  # added to an fp32 buffer, in fp32
            return Gradients(self.element, self.element + FP32, 0)
        if self.zero_stage <= 1 and first:
            return Gradients(FP32, FP32, FP32)
        return Gradients(self.element, self.element, 0)

    @property
    def buffers(self) -> int:
        """Bytes of DeepSpeed's during a backward pass."""
        if self.zero_stage == 3:  # in the dtype that gradients are reduced in
            return FP32 * self.bucket
        if self.zero_stage == 2 or (self.zero_stage == 1 and not self.bf16):
            return self.element * self.bucket
        return 0

    @property
    def gathered(self) -> int:
        """Bytes of weights that ZeRO 3 has gathered: DeepSpeed lets go of what is not used again within so many."""
        if self.zero_stage < 3 or self.replicas == 1:
            return 0
        parted = sum(p.numel for p in self.footprint.parameters if p.numel > PERSISTENT_NUMEL)
        return self.element * min(parted, LIVE_NUMEL)

    @property
    def reducing(self) -> int:
        """Bytes more while a bucket is reduced: flat, and in fp32."""
        if self.zero_stage == 3:
            copies = 2 if self.device == "cpu" else 1  # gloo clones what it scatters the sum of
            return copies * FP32 * self.bucket
        if self.zero_stage == 2 and self.bf16:
            return (self.element + FP32) * self.bucket
        if self.zero_stage == 2 and self.replicas > 1:
            return FP32 * self.bucket
        return 0

    @property
    def step_buffers(self) -> int:
        """Bytes beside them: flat copies of what a rank updates, and one gradient in fp64 for the norm."""
        if self.zero_stage == 3:
            return FP32 * (self.bucket + self.partition)
        if self.zero_stage == 2:
            largest = max((p.numel for p in self.footprint.parameters if p.trainable), default=0)
            return 8 * largest if self.bf16 else FP32 * self.partition
        if self.zero_stage == 1 and not self.bf16:
            return FP32 * self.bucket
        return 0


def _forward_and_backward(
    kept: Activations, there: _Engine, layout: ParallelConfig, stage: int, micro_batches: int, resident: float
) -> Iterator[RankMemory]:
    in_flight = layout.in_flight(stage, micro_batches)
    passes = len(kept.chunks) * in_flight  # of a micro-batch through a chunk
    held = sum(chunk.held for chunk in kept.chunks) / len(kept.chunks)
    turns = [(True, passes)]
    if micro_batches > 1:
        turns.append((False, min(passes, len(kept.chunks) * micro_batches - 1)))
    weights = there.state.weights + there.gathered
    for first, together in turns:
        others = (together - 1) * held
        logits = round(kept.logits)
        accumulated = there.accumulated(first)
        handed = 0.0 if first else kept.handed
        for chunk in kept.chunks:
            moment = walk(chunk, there.gradients(first))
            yield RankMemory(
                weights=weights,
                gradients=round(accumulated + moment.gradients),
                optimizer=there.state.optimizer,
                activations=round(others + moment.activations),
                logits=logits,
                buffers=round(resident + handed + there.buffers),
            )
        yield RankMemory(
            weights=there.state.weights,
            gradients=there.own_gradients,
            optimizer=there.state.optimizer,
            activations=round(others),
            logits=logits,
            buffers=round(resident + there.buffers + there.reducing),
        )
        yield RankMemory(
            weights=weights,
            gradients=accumulated,
            optimizer=there.state.optimizer,
            activations=round(others + kept.chunks[-1].held),
            logits=round(kept.logits + kept.logits_work),
            buffers=round(resident + 2 * handed + there.buffers * (not first or there.zero_stage == 3)),
            moment="forward",
        )
