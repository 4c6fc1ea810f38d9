"""The time of one step: micro-batches through the pipeline, then gradients, then the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.plan.compute import ComputeSeconds, Device
from launcher.plan.figures import StepTime
from launcher.plan.links import Links
from modeling.footprint import Footprint
from training.config import ParallelConfig
from training.footprint import FP32, PERSISTENT_NUMEL, data_traffic


@dataclass(frozen=True)
class StageTimes:
    """One rank of a pipeline stage; seconds of one micro-batch through all its chunks."""

    footprint: Footprint
    numel: int
    trained: int
    compute: ComputeSeconds
    tensor: float
    """As far as it waits."""
    tensor_forward: float
    """Of that, in the forward pass."""
    tensor_overlapped: float
    handover: float
    """Of one exchange with a neighbour."""
    seconds: float
    """Without handing over."""


def stage_times(
    footprint: Footprint,
    numel: int,
    trained: int,
    compute: ComputeSeconds,
    parallel: ParallelConfig,
    samples: int,
    recompute: str,
    device: Device,
    links: Links,
) -> StageTimes:
    """Communication of a micro-batch of `samples` added to its computation."""
    tensor = parallel.tensor
    bytes_ = 2 * (tensor - 1) / tensor * footprint.summed * samples * device.width
    # A layer's sums as `modeling.footprint.Layer.summed` counts them: two of them are forward's. Backward's hide first.
    sums = 4 + parallel.sequence + {"none": 0, "selective": 1, "full": 2}[recompute]
    layers = max(1, sum(p.name.endswith("linear_proj.weight") for p in footprint.parameters))
    # Under sequence parallelism each sum is two collectives: one scatters, one gathers.
    collectives = layers * sums * (2 if parallel.sequence else 1)
    sent = links.seconds(bytes_, links.tensor, collectives if tensor > 1 else 0)
    hidden = device.habits.tensor_overlap * sent
    forward = 2 / sums * sent
    forward -= max(0.0, hidden - (sent - forward))
    handed = footprint.boundary * samples * device.width
    if device.habits.scatter_gather and not parallel.sequence:
        handed /= tensor
    return StageTimes(
        footprint=footprint,
        numel=numel,
        trained=trained,
        compute=compute,
        tensor=sent - hidden,
        tensor_forward=forward,
        tensor_overlapped=hidden,
        handover=(1 - device.habits.pipeline_overlap) * links.seconds(handed, links.pipeline),
        seconds=compute.total + sent - hidden,
    )


class Step:
    """The time of a step as a function of its number of micro-batches.

    The slowest stage works all the time; while it waits for the first micro-batch and after the last, the others work
    one micro-batch, of which an interleaved schedule waits for one chunk (Narayanan et al. 2021, section 2.2).
    """

    def __init__(
        self,
        stages: Sequence[StageTimes],
        parallel: ParallelConfig,
        replicas: int,
        precision: str,
        device: Device,
        links: Links,
        couples_batch: bool,
    ) -> None:
        self.parallel, self.replicas, self.precision = parallel, replicas, precision
        self.device, self.links, self.couples_batch = device, links, couples_batch
        self.slowest = max(stages, key=lambda stage: stage.seconds)
        self.largest = max(stages, key=lambda stage: stage.numel)
        chunks = parallel.virtual_pipeline
        others = sum(stage.seconds for stage in stages) - self.slowest.seconds
        exchanges = 2 * self.slowest.handover * (parallel.pipeline - 1)
        self.bubble = others / chunks + exchanges if parallel.pipeline > 1 else 0.0
        # Of each micro-batch and chunk, one exchange with the neighbours forward and one backward.
        self.handover = 2 * chunks * self.slowest.handover if parallel.pipeline > 1 else 0.0
        self.optimizer = self._optimizer()
        self._once = None if parallel.zero_stage >= 2 else self._data(1)

    def seconds(self, micro_batches: int, batch_loss: float = 0.0) -> StepTime:
        """With so many micro-batches a rank; `batch_loss`: seconds of a loss over the whole batch."""
        m, slowest = micro_batches, self.slowest
        twice = self.couples_batch and m > 1
        first_pass = slowest.compute.forward + slowest.tensor_forward if twice else 0.0
        data, overlapped = self._once or self._data(m)
        compute = m * (slowest.compute.forward + slowest.compute.backward)
        recompute = m * (slowest.compute.recompute + first_pass)
        tensor, pipeline = m * slowest.tensor, m * self.handover
        total = compute + recompute + tensor + pipeline + self.bubble + batch_loss + data + self.optimizer
        return StepTime(
            compute_seconds=compute,
            recompute_seconds=recompute,
            tensor_seconds=tensor,
            pipeline_seconds=pipeline,
            bubble_seconds=self.bubble,
            batch_loss_seconds=batch_loss,
            data_seconds=data,
            optimizer_seconds=self.optimizer,
            total_seconds=total,
            data_overlapped_seconds=overlapped,
            tensor_overlapped_seconds=m * slowest.tensor_overlapped,
        )

    def _data(self, micro_batches: int) -> tuple[float, float]:
        """Seconds of data-parallel communication that wait, and those that hide; the largest stage's."""
        footprint, links, slowest = self.largest.footprint, self.links, self.slowest
        traffic = data_traffic(footprint, self.parallel, self.precision, self.replicas, micro_batches)
        if "gradients" in traffic:
            traffic["gradients"] *= self.device.habits.gradient_width / FP32
        # ZeRO 3 gathers each matrix by itself, forward and backward.
        apart = sum(p.numel > PERSISTENT_NUMEL for p in footprint.parameters) if self.parallel.zero_stage == 3 else 0
        times = {"weights": max(1, 2 * micro_batches * apart)}
        sent = sum(links.seconds(bytes_, links.data, times.get(what, 1)) for what, bytes_ in traffic.items())
        # ZeRO 2 and 3 communicate in every micro-batch, the others in the last one.
        behind = slowest.compute.backward + slowest.compute.forward
        behind *= micro_batches if self.parallel.zero_stage >= 2 else 1
        hidden = min(self.device.habits.data_overlap * sent, behind)
        # Both holders of a tied embedding sum its gradient, and partial gradients are summed: in fp32, once a step.
        tied = links.seconds(footprint.tied * FP32, links.pipeline)
        partial = links.seconds(2 * footprint.partial * FP32, links.tensor)
        return sent - hidden + tied + partial, hidden

    def _optimizer(self) -> float:
        """Passes over gradients and state, which memory bounds; an offloaded state, the way to the host."""
        habits, device, trained = self.device.habits, self.device, self.largest.trained
        share = trained / self.replicas if self.parallel.zero_stage else trained
        seconds = device.move((share if self.parallel.zero_stage >= 2 else trained) * habits.sweep_bytes)
        if self.parallel.offload_optimizer:  # gradients go there in fp32, weights come back in bf16
            return seconds + share * (FP32 + 2) / device.accelerator.host_bandwidth
        return seconds + device.move(share * habits.adam_bytes)
