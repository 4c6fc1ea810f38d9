"""What an engine holds beside a micro-batch's activations, by formula: where gradients accumulate, and what DeepSpeed
0.19.8 copies while it reduces and steps. Without torch or DeepSpeed.

One function for each of its optimizers; tests/distributed/test_memory.py compares whole steps. NCCL's and CUDA's own
buffers are no tensors and not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modeling.footprint import Footprint
from modeling.memory import Gradients
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

FP64 = 8


@dataclass(frozen=True)
class EngineMemory:
    """Bytes on one rank's device, but for `host`."""

    weights: int
    optimizer: int
    first: Gradients
    """Of the weights' gradients in a step's first micro-batch."""
    later: Gradients
    gradients: int
    """Where they accumulate, once they do."""
    allocated: bool
    """Whether that is there before the first micro-batch's backward."""
    buffers: int = 0
    """During a backward pass."""
    until: Literal["micro-batch", "step", "end"] = "step"
    """What `buffers`, made in the first backward, are there to the end of."""
    gathered: int = 0
    """Weights that are put together for forward and backward."""
    reducing: int = 0
    """More while gradients are reduced, after backward."""
    step: int = 0
    """More in the optimizer's step."""
    host: int = 0


def engine_memory(
    footprint: Footprint, parallel: ParallelConfig, precision: str, replicas: int, device: str
) -> EngineMemory:
    """Of one of `replicas` data-parallel ranks."""
    state = state_bytes(footprint, parallel, precision, replicas)
    element = width(precision)
    numels = [p.numel for p in footprint.parameters if p.trainable]
    sizes = _Sizes(element, sum(numels), max(numels, default=0), state.optimizer // (3 * FP32), device)
    if parallel.offload_optimizer:
        return _offloaded(state, sizes, parallel.zero_stage)
    if parallel.zero_stage == 0:
        return _reference(state, replicas)
    if parallel.zero_stage == 1:
        return _bf16_optimizer(state, sizes) if precision == "bf16" else _stage_1(state, sizes)
    if parallel.zero_stage == 2:
        return _stage_2(footprint, state, sizes, replicas)
    return _stage_3(footprint, state, sizes, replicas)


@dataclass(frozen=True)
class _Sizes:
    element: int
    trained: int
    """Elements."""
    largest: int
    """Elements of the largest parameter."""
    partition: int
    """Elements of this rank's part of the optimizer's state."""
    device: str

    @property
    def widened(self) -> int:
        """Bytes an element of the fp32 copy that a CPU makes of a bf16 gradient to add it; a GPU adds it as it is."""
        return FP32 if self.element < FP32 and self.device == "cpu" else 0

    @property
    def bucket(self) -> int:
        """Elements that are reduced together."""
        return min(REDUCE_BUCKET, self.trained)

    @property
    def copied(self) -> Gradients:
        """A gradient is copied into a bucket, and gone."""
        return Gradients(self.element, self.element, 0)


_KEPT = Gradients(FP32, FP32, FP32)
"""The first micro-batch's gradients are where the next ones' are added."""
_ADDED = Gradients(FP32, FP32, 0)


def _reference(state: StateBytes, replicas: int) -> EngineMemory:
    """`training.engine.reference`: all gradients are reduced as one copy."""
    step = state.gradients if replicas > 1 else 0
    return EngineMemory(state.weights, state.optimizer, _KEPT, _ADDED, state.gradients, allocated=False, step=step)


def _bf16_optimizer(state: StateBytes, sizes: _Sizes) -> EngineMemory:
    """DeepSpeed's BF16_Optimizer: one fp32 buffer, to which gradients are added."""
    added = Gradients(sizes.element, sizes.element + sizes.widened, 0)
    return EngineMemory(state.weights, state.optimizer, added, added, state.gradients, allocated=True)


def _stage_1(state: StateBytes, sizes: _Sizes) -> EngineMemory:
    """The step makes a second bucket; the first one holds the gradients then."""
    bucket = FP32 * sizes.bucket
    return EngineMemory(state.weights, state.optimizer, _KEPT, _ADDED, state.gradients, allocated=False, buffers=bucket)


def _stage_2(footprint: Footprint, state: StateBytes, sizes: _Sizes, replicas: int) -> EngineMemory:
    """A bucket in the weights' dtype; flat once more to be reduced, in fp32. Of fp32 gradients those are kept whole
    that lie across two ranks' parts. Norms are computed in fp64, a parameter at a time.
    """
    bf16 = sizes.element < FP32
    flat = (sizes.element + FP32) * sizes.bucket if bf16 else FP32 * sizes.bucket if replicas > 1 else 0
    return EngineMemory(
        state.weights,
        state.optimizer,
        sizes.copied,
        sizes.copied,
        state.gradients if bf16 else FP32 * touched(footprint, replicas),
        allocated=False,
        buffers=sizes.element * sizes.bucket,
        until="micro-batch",
        reducing=flat,
        step=FP64 * sizes.largest if bf16 else FP32 * sizes.partition,
    )


def _stage_3(footprint: Footprint, state: StateBytes, sizes: _Sizes, replicas: int) -> EngineMemory:
    """A bucket in fp32, from step to step; weights stay gathered as long as they are used again within LIVE_NUMEL
    elements. gloo clones what it scatters the sum of.
    """
    parted = sum(p.numel for p in footprint.parameters if p.numel > PERSISTENT_NUMEL)
    return EngineMemory(
        state.weights,
        state.optimizer,
        sizes.copied,
        sizes.copied,
        state.gradients,
        allocated=True,
        buffers=FP32 * sizes.bucket,
        until="end",
        gathered=sizes.element * min(parted, LIVE_NUMEL) if replicas > 1 else 0,
        reducing=FP32 * sizes.bucket * (2 if sizes.device == "cpu" else 1),
        step=FP32 * sizes.partition,
    )


def _offloaded(state: StateBytes, sizes: _Sizes, stage: int) -> EngineMemory:
    """ZeRO-Offload (Ren et al. 2021): the optimizer's state, a rank's part of the gradients, its new weights and the
    largest gradient are on the host; at stage 2 also where gradients accumulate, which are on the device at stage 1.
    """
    parts = FP32 * sizes.partition * (1 if stage == 1 else 2)
    host = state.optimizer + parts + sizes.element * (sizes.partition + sizes.largest)
    if stage == 1:
        first = Gradients(sizes.element, sizes.element + FP32 * (sizes.element < FP32), FP32)
        later = Gradients(sizes.element, first.added, 0)
        gradients, bucket = FP32 * sizes.trained, FP32 * sizes.bucket
    else:
        first = later = sizes.copied
        gradients, bucket = 0, sizes.element * sizes.bucket
    return EngineMemory(
        state.weights,
        0,
        first,
        later,
        gradients,
        allocated=False,
        buffers=bucket + sizes.element * sizes.largest,
        until="step" if stage == 1 else "micro-batch",
        reducing=bucket,
        host=host,
    )
