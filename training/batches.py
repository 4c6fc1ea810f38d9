"""From the stream to micro-batches: this data-parallel rank's slice of each batch, read ahead, on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data_pipeline.batching import BatchSchedule
from data_pipeline.document_masks import document_numbers
from data_pipeline.mixed_stream import MixedStream
from data_pipeline.prefetch import Prefetcher
from data_pipeline.stream import Batch

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
    """The batches from sample `samples` on, of which this rank takes slice `index` of `count`; `arrays` says what the
    model is given of a batch, each `[n, …]`.
    """

    def __init__(
        self,
        stream: MixedStream,
        schedule: BatchSchedule,
        micro_batch_size: int,
        device: torch.device,
        *,
        samples: int,
        index: int,
        count: int,
        depth: int,
        arrays: Callable[[Any], dict[str, np.ndarray]],
    ) -> None:
        self._micro_batch_size = micro_batch_size
        self._device = device
        self._arrays = arrays
        self._sizes = (size for _, size in _requests(schedule, samples))
        self._ahead = Prefetcher(stream, _requests(schedule, samples), index, count, depth)

    def __next__(self) -> LocalBatch:
        batch = next(self._ahead)
        return LocalBatch(
            cut(self._arrays(batch), self._micro_batch_size, self._device),
            torch.from_numpy(batch.corpus).to(self._device),
            next(self._sizes),
        )

    def close(self) -> None:
        """Stop reading ahead."""
        self._ahead.close()


def split(batch: Batch, micro_batch_size: int, device: torch.device, eod_id: int | None = None) -> list[MicroBatch]:
    """`tokens` `[micro_batch_size, s + 1]` each; with `eod_id`, documents are kept apart: `documents` of the same shape
    is the number of each token's document.
    """
    return cut(token_arrays(batch, eod_id), micro_batch_size, device)


def token_arrays(batch: Batch, eod_id: int | None) -> dict[str, np.ndarray]:
    """What a decoder is given of a batch, as in `split`."""
    arrays = batch.arrays()
    if eod_id is not None:
        arrays["documents"] = document_numbers(batch.tokens, eod_id)
    return arrays


def cut(arrays: Mapping[str, np.ndarray], micro_batch_size: int, device: torch.device) -> list[MicroBatch]:
    """Micro-batches of arrays `[n, …]`, copied to the device without waiting for it; the last may be smaller."""
    parts = [_to(device, torch.from_numpy(array)).split(micro_batch_size) for array in arrays.values()]
    return [dict(zip(arrays, tensors, strict=True)) for tensors in zip(*parts, strict=True)]


def _to(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _requests(schedule: BatchSchedule, samples: int) -> Iterator[tuple[int, int]]:
    """(first sample, size) of each batch, counted on from the samples consumed: before a resume the batch may have had
    another size.
    """
    while True:
        size = schedule.size_at(samples)
        yield samples, size
        samples += size
