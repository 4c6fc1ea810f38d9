"""Validation: mean loss, perplexity and bits per byte of held-out samples, the same on any layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from data_pipeline.config import CacheConfig, ShardSource
from data_pipeline.document_masks import document_numbers, predicted_targets
from data_pipeline.stream import ValidationSet
from modeling import groups
from training.batches import MicroBatch, split

Evaluate = Callable[[Sequence[MicroBatch]], list[dict[str, torch.Tensor]]]
"""Micro-batches → figures with `sample_losses`, without gradients or dropout (figures are empty where no loss is
known).
"""

_CHUNK = 8  # micro-batches a rank runs between two signs of life


@dataclass(frozen=True)
class Validation:
    """What a validation found."""

    loss: float
    """Nats per token; where documents are kept apart, per predicted token."""
    bits_per_byte: float
    """Bits per UTF-8 byte of the text that the predicted tokens stand for; end-of-document tokens cost bits and stand
    for none.
    """
    loss_of: dict[str, float]
    """Nats per token of each held-out set."""
    samples: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))  # beyond, a float has no number for it

    def figures(self) -> dict[str, float]:
        """Under the names of metrics.jsonl."""
        figures = {
            "validation_loss": self.loss,
            "validation_perplexity": self.perplexity,
            "validation_bits_per_byte": self.bits_per_byte,
        }
        return figures | {f"validation_loss/{name}": loss for name, loss in self.loss_of.items()}


class Validator:
    """Evaluates up to `samples` samples of each held-out set (0: all).

    `rounds`: the number of micro-batches is made a multiple of it, as the interleaved schedule wants. `alive` is called
    now and then. `eod_id`: the token that ends documents, where they are kept apart. `cache`: for remote shard sets.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        device: torch.device,
        sources: list[ShardSource],
        token_bytes: np.ndarray,
        *,
        micro_batch_size: int,
        samples: int,
        rounds: int = 1,
        alive: Callable[[], None] = lambda: None,
        eod_id: int | None = None,
        cache: CacheConfig | None = None,
    ) -> None:
        self._run_model = evaluate
        self._device = device
        self._rounds = rounds
        self._sets = [ValidationSet([source], cache) for source in sources]
        self._token_bytes = token_bytes
        self._micro = micro_batch_size
        self._limit = samples
        self._alive = alive
        self._eod_id = eod_id

    def run(self) -> Validation:
        """Collective: every rank calls it, every rank gets the result."""
        sums = torch.zeros(len(self._sets), 4, dtype=torch.float64)
        for number, held_out in enumerate(self._sets):
            count = min(len(held_out), self._limit) if self._limit else len(held_out)
            sums[number] = self._evaluate(held_out, count)
        sums = sums.to(self._device)
        dist.all_reduce(sums)
        nats, tokens, octets, samples = sums.sum(0).tolist()
        each = {s.names[0]: float(row[0] / row[1]) for s, row in zip(self._sets, sums.tolist(), strict=True)}
        return Validation(nats / tokens, nats / math.log(2.0) / octets, each, round(samples))

    def _evaluate(self, held_out: ValidationSet, count: int) -> torch.Tensor:
        """This rank's part of (nats, tokens, bytes, samples) over the first `count` samples."""
        here = groups.coordinates()
        per_rank = -(-count // (here.data_size * self._micro)) * self._micro
        rounds = self._rounds
        per_rank = -(-per_rank // (self._micro * rounds)) * self._micro * rounds
        chunk = max(_CHUNK // rounds, 1) * rounds * self._micro
        total = torch.zeros(4, dtype=torch.float64)
        for low in range(here.data * per_rank, (here.data + 1) * per_rank, chunk):
            size = min(chunk, (here.data + 1) * per_rank - low)
            total += self._chunk(held_out, count, low, size)
            self._alive()
        return total

    def _chunk(self, held_out: ValidationSet, count: int, low: int, size: int) -> torch.Tensor:
        """Samples low … low + size; those past `count` only fill the schedule up, and weigh nothing."""
        first = min(low, count - 1)
        real = max(0, min(size, count - low))
        batch = held_out.batch(first, max(real, 1))
        tokens = np.concatenate([batch.tokens, np.repeat(batch.tokens[-1:], size - len(batch.tokens), axis=0)])
        filled = type(batch)(tokens, np.zeros(size, dtype=np.int64))
        figures = self._run_model(split(filled, self._micro, self._device, self._eod_id))
        if not groups.is_last_stage() or groups.coordinates().tensor != 0:
            return torch.zeros(4, dtype=torch.float64)
        losses = torch.cat([f["sample_losses"] for f in figures]).double()[:real].cpu()
        counted = self._predicted(tokens[:real])
        nats = float(losses @ torch.from_numpy(counted.sum(1)).double())
        octets = float(self._token_bytes[tokens[:real, 1:][counted]].sum())
        return torch.tensor([nats, counted.sum(), octets, real], dtype=torch.float64)

    def _predicted(self, tokens: np.ndarray) -> np.ndarray:
        """True for the targets that `sample_losses` are means over, `[n, s]`."""
        if self._eod_id is None:
            return np.ones(tokens[:, 1:].shape, dtype=bool)
        return predicted_targets(document_numbers(tokens, self._eod_id))
