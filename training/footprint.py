"""What ZeRO makes of a rank's parameters: bytes of weights, gradients and optimizer state, and what it sends a step.

By formula, without torch or DeepSpeed, after Rajbhandari et al. 2020 as deepspeed 0.19.8 does it;
tests/distributed/test_footprint.py compares with the tensors and the collectives of real engines.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from modeling.footprint import Footprint, LocalParameter
from training.config import ParallelConfig

FP32 = 4
"""Bytes of a master weight, of each moment, of an accumulated gradient, and of each while it is reduced."""
PERSISTENT_NUMEL = 100_000
"""ZeRO 3 leaves parameters up to this size whole on every rank (DeepSpeed's stage3_param_persistence_threshold)."""
LIVE_NUMEL = 1_000_000_000
"""ZeRO 3 keeps as many gathered elements before it lets go (stage3_max_live_parameters, stage3_max_reuse_distance)."""
REDUCE_BUCKET = 500_000_000
"""Elements of gradients that DeepSpeed reduces together (its own default), as long as a rank trains as many."""
_ALIGNMENT = 2
"""DeepSpeed pads a parameter group to a multiple of this times the data-parallel ranks."""


@dataclass(frozen=True)
class StateBytes:
    """What a rank keeps from step to step. With an offloaded optimizer `gradients` and `optimizer` are on the host."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def width(precision: str) -> int:
    """Bytes of a weight in forward and of an activation."""
    return 2 if precision == "bf16" else FP32


def state_bytes(footprint: Footprint, parallel: ParallelConfig, precision: str, replicas: int) -> StateBytes:
    """Bytes on one of `replicas` data-parallel ranks."""
    stage, element = parallel.zero_stage, width(precision)
    trained = [p for p in footprint.parameters if p.trainable]
    frozen = sum(p.numel for p in footprint.parameters if not p.trainable)
    numel = sum(p.numel for p in trained)
    if stage == 0:  # the weights are the masters
        return StateBytes(FP32 * (numel + frozen), FP32 * numel, 2 * FP32 * numel)
    if stage == 3:
        part = sum(-(-p.numel // replicas) for p in trained)
        kept = sum(p.numel for p in footprint.parameters if p.numel <= PERSISTENT_NUMEL)
        frozen_part = sum(-(-p.numel // replicas) for p in footprint.parameters if not p.trainable)
        return StateBytes(element * (kept + part + frozen_part), FP32 * part, 3 * FP32 * part)
    padded = sum(_padded(group, replicas) for group in _groups(trained))
    part = padded // replicas
    gradients = part if stage == 2 else numel if precision == "fp32" else padded
    return StateBytes(element * (padded + frozen), FP32 * gradients, 3 * FP32 * part)


def touched(footprint: Footprint, replicas: int) -> int:
    """Elements of the parameters that lie, in part or whole, in the fullest of `replicas` parts."""
    parts = [0] * replicas
    for decay in (True, False):
        numels = [p.numel for p in footprint.parameters if p.trainable and p.decay == decay]
        part = max(1, _padded(sum(numels), replicas) // replicas)
        start = 0
        for numel in numels:
            for owner in range(start // part, (start + numel - 1) // part + 1):
                parts[owner] += numel
            start += numel
    return max(parts)


def _groups(parameters: Iterable[LocalParameter]) -> list[int]:
    """Elements of the optimizer's groups: with and without weight decay."""
    sums = {True: 0, False: 0}
    for parameter in parameters:
        sums[parameter.decay] += parameter.numel
    return [numel for numel in sums.values() if numel]


def _padded(numel: int, replicas: int) -> int:
    unit = _ALIGNMENT * replicas
    return -(-numel // unit) * unit


def data_traffic(
    footprint: Footprint, parallel: ParallelConfig, precision: str, replicas: int, micro_batches: int
) -> dict[str, float]:
    """Bytes that a rank sends to its data-parallel peers in a step, by what they are for; rings throughout.

    A sum over d ranks sends 2 (d - 1) / d of a tensor, a gather or a scattering sum half of that. Gradients are summed
    in fp32: once a step, at stages 2 and 3 after every micro-batch. Single numbers are left out.
    """
    stage, element = parallel.zero_stage, width(precision)
    share = (replicas - 1) / replicas
    numel = sum(p.numel for p in footprint.parameters if p.trainable)
    if replicas == 1:
        return {}
    if stage == 3:
        whole = sum(p.numel for p in footprint.parameters if p.numel <= PERSISTENT_NUMEL)
        gathered = sum(p.numel for p in footprint.parameters) - whole
        return {
            "gradients": share * FP32 * numel * micro_batches,
            "weights": share * element * (2 * gathered * micro_batches + whole),
        }
    times = micro_batches if stage == 2 else 1
    traffic = {"gradients": 2 * share * FP32 * numel * times}
    if stage:
        traffic["weights"] = share * element * numel
    return traffic
