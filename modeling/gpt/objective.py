"""One micro-batch of next-token prediction, in the form that Megatron Core's pipeline schedules call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from modeling import document_masks

Batch = dict[str, torch.Tensor]
LossFunction = Callable[[torch.Tensor], tuple[torch.Tensor, dict[str, torch.Tensor]]]


def forward_step(batch: Batch, model: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, LossFunction]:
    """Run one micro-batch through one chunk.

    Args:
        batch: `tokens` `[b, s + 1]`, each sample with the token that its last position predicts; where documents are to
            be kept apart also `documents` `[b, s + 1]`, the document of each token, growing by one where the next
            begins. Attention then stays within a document, positions count from its first token, and the first token of
            the next is not predicted.
        model: a GPT chunk, or an engine around it.

    Returns:
        The chunk's output, and the function from the last chunk's output to (mean loss in nats per token, figures).
    """
    tokens, documents = batch["tokens"], batch.get("documents")
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    if documents is None:
        positions = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
        return model(inputs, positions, None, labels=labels), loss
    own = documents[:, :-1]
    output = model(inputs, document_masks.positions(own), None, labels=labels, documents=own)
    return output, partial(loss, predicted=document_masks.predicted(documents))


def loss(token_losses: torch.Tensor, predicted: torch.Tensor | None = None) -> tuple[torch.Tensor, dict[str, Any]]:
    """Mean over the micro-batch, and `sample_losses` `[b]`: each sample's mean, detached.

    Targets that are not `predicted` `[b, s]` add nothing to the mean, but are still divided by: micro-batches and
    data-parallel ranks are averaged with equal weights, and so every token weighs the same however a batch is divided.
    `sample_losses` are then means over the predicted targets, and `sample_tokens` `[b]` is how many those are (a sample
    without any has loss 0).
    """
    if predicted is None:
        sample_losses = token_losses.mean(dim=1)
        return sample_losses.mean(), {"sample_losses": sample_losses.detach()}
    token_losses = torch.where(predicted, token_losses, 0.0)
    counts = predicted.sum(dim=1)
    sample_losses = token_losses.detach().sum(dim=1) / counts.clamp(min=1)
    return token_losses.mean(), {"sample_losses": sample_losses, "sample_tokens": counts}
