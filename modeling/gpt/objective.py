"""One micro-batch of next-token prediction, in the form that Megatron Core's pipeline schedules call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Batch = dict[str, torch.Tensor]
LossFunction = Callable[[torch.Tensor], tuple[torch.Tensor, dict[str, torch.Tensor]]]


def forward_step(batch: Batch, model: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, LossFunction]:
    """Run one micro-batch through one chunk.

    Args:
        batch: `tokens` `[b, s + 1]`, each sample with the token that its last position predicts.
        model: a GPT chunk, or an engine around it.

    Returns:
        The chunk's output, and the function from the last chunk's output to (mean loss in nats per token, figures).
    """
    tokens = batch["tokens"]
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    positions = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
    return model(inputs, positions, None, labels=labels), loss


def loss(token_losses: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """Mean over the micro-batch, and `sample_losses` `[b]`: each sample's mean, detached."""
    sample_losses = token_losses.mean(dim=1)
    return sample_losses.mean(), {"sample_losses": sample_losses.detach()}
