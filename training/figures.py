"""What is measured between two log lines: kept on the device, reduced over all ranks once a line."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from modeling import groups
from training.batches import LocalBatch


class Tally:
    """Losses of the steps since the last line, by corpus; sums stay on the device until `reduce`."""

    def __init__(self, corpora: list[str], device: torch.device) -> None:
        self._corpora = corpora
        self._device = device
        # Only the last stage knows losses, and its tensor-parallel ranks know the same ones.
        self._knows = groups.is_last_stage() and groups.coordinates().tensor == 0
        self._interval = torch.zeros(len(corpora), 2, dtype=torch.float64, device=device)
        self._step = torch.zeros(2, dtype=torch.float64, device=device)
        self._others: dict[str, torch.Tensor] = {}

    def add(self, batch: LocalBatch, figures: list[dict[str, torch.Tensor]]) -> None:
        """Take note of a step's losses; nothing waits for the device."""
        self._step.zero_()
        if not self._knows:
            return
        losses = torch.cat([f["sample_losses"] for f in figures]).to(self._device, torch.float64)
        weights = torch.ones_like(losses)
        if "sample_tokens" in figures[0]:  # samples that do not all predict the same number of tokens
            weights = torch.cat([f["sample_tokens"] for f in figures]).to(losses)
        # What else a family reports, equal on every rank: the newest counts.
        self._others = {key: value for key, value in figures[-1].items() if not key.startswith("sample_")}
        self._interval[:, 0].index_add_(0, batch.corpus, losses * weights)
        self._interval[:, 1].index_add_(0, batch.corpus, weights)
        self._step += torch.stack([(losses * weights).sum(), weights.sum()])

    def step_loss(self) -> float:
        """Mean loss of the last step over all ranks. Collective, and waits for the device."""
        total = self._step.clone()
        dist.all_reduce(total)
        return float(total[0] / total[1])

    def forget(self) -> None:
        """Begin the interval anew: its steps have been undone."""
        self._interval.zero_()

    def reduce(self, parameter_norm_squared: torch.Tensor, counts: Mapping[str, int] | None = None) -> dict[str, float]:
        """The interval's figures, and a new interval begins. Collective: one all-reduce, one wait for the device.

        `counts` are summed over data-parallel ranks; their names are the same on every rank.
        """
        counts = counts or {}
        own = [float(count) if self._knows else 0.0 for count in counts.values()]
        flat = torch.cat(
            [
                torch.tensor(own, dtype=torch.float64, device=self._device),
                self._interval.flatten(),
                self._step,
                parameter_norm_squared.reshape(1).to(self._interval),
            ]
        )
        dist.all_reduce(flat)
        summed, values = flat[: len(own)].tolist(), flat[len(own) :].tolist()
        self._interval.zero_()
        figures = {"loss": values[-3] / values[-2], "parameter_norm": values[-1] ** 0.5}
        figures |= {key: float(value) for key, value in self._others.items()}
        figures |= {name: int(count) for name, count in zip(counts, summed, strict=True)}
        for number, name in enumerate(self._corpora):
            total, count = values[2 * number], values[2 * number + 1]
            if count:
                figures[f"loss/{name}"] = total / count
        return figures


def memory_bytes() -> int:
    """Peak memory of this rank: allocated on its GPU, or resident where there is none."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_name() -> str:
    """As makers' peaks are looked up by."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def flops_note(formula: str, flops_per_token: float, peak: float | None, world_size: int, parameters: int) -> str:
    """How MFU comes about, for TensorBoard."""
    shown = (
        "unknown: its name is in no data sheet that Trestle has"
        if peak is None
        else f"{peak / 1e12:.0f} TFLOP/s dense bf16"
    )
    return (
        f"mfu = flops_per_token x tokens_per_second / (ranks x peak)\n\n"
        f"- flops_per_token = {formula} = {flops_per_token:.4g} (N = {parameters:,})\n"
        f"- ranks = {world_size}\n- device {device_name()}, peak {shown}\n"
    )


def public(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures in the order in which people look for them."""
    first = ["loss", "validation_loss", "learning_rate", "grad_norm", "tokens_per_second", "step_seconds", "mfu"]
    return {key: figures[key] for key in [*(k for k in first if k in figures), *(k for k in figures if k not in first)]}
