"""From the stream to micro-batches: this data-parallel rank's slice of each batch, read ahead, on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from data_pipeline.batching import BatchSchedule
from data_pipeline.stream import Batch, Prefetcher, Stream

MicroBatch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class LocalBatch:
    """One rank's slice of a global batch."""

    micro_batches: list[MicroBatch]
    corpus: torch.Tensor
    """`[n]`: which corpus each of the slice's samples is from, in order."""
    samples: int
    """Samples in the global batch."""


class Batches:
    """The batches from sample `samples` on, of which this rank takes slice `index` of `count`."""

    def __init__(
        self,
        stream: Stream,
        schedule: BatchSchedule,
        micro_batch_size: int,
        device: torch.device,
        *,
        samples: int,
        index: int,
        count: int,
        depth: int,
    ) -> None:
        self._micro_batch_size = micro_batch_size
        self._device = device
        self._sizes = (size for _, size in _requests(schedule, samples))
        self._ahead = Prefetcher(stream, _requests(schedule, samples), index, count, depth)

    def __next__(self) -> LocalBatch:
        batch = next(self._ahead)
        return LocalBatch(
            split(batch, self._micro_batch_size, self._device),
            torch.from_numpy(batch.corpus).to(self._device),
            next(self._sizes),
        )

    def close(self) -> None:
        """Stop reading ahead."""
        self._ahead.close()


def split(batch: Batch, micro_batch_size: int, device: torch.device) -> list[MicroBatch]:
    """`tokens` `[micro_batch_size, s + 1]` each, copied to the device without waiting for it."""
    tokens = torch.from_numpy(batch.tokens)
    if device.type == "cuda":
        tokens = tokens.pin_memory().to(device, non_blocking=True)
    return [{"tokens": part} for part in tokens.split(micro_batch_size)]


def _requests(schedule: BatchSchedule, samples: int) -> Iterator[tuple[int, int]]:
    """(first sample, size) of each batch, counted on from the samples consumed: before a resume the batch may have had
    another size.
    """
    while True:
        size = schedule.size_at(samples)
        yield samples, size
        samples += size
