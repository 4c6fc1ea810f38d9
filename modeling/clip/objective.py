"""The contrastive objective in the two halves that a gradient cache needs: features, and the loss over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from modeling.clip.config import CLIPConfig
from modeling.contrastive import Coupled, clip_loss, nt_xent_loss, sigmoid_loss
from modeling.coupling import Coupling, Embedded

Batch = dict[str, torch.Tensor]


def embed(batch: Batch, model: Callable[..., Any]) -> Embedded:
    """One micro-batch's features.

    batch: `images` uint8 `[b, 3, H, W]` and `tokens` int64 `[b, context]`; model: a CLIP chunk, or an engine around it.
    """
    image, text, log_scale, bias = model(batch["images"], batch["tokens"])
    return Embedded((image, text), (log_scale,) if bias is None else (log_scale, bias))


def couple(embedded: Sequence[Embedded], config: CLIPConfig, group: dist.ProcessGroup | None) -> Coupling:
    """The loss that `config.loss` names over the pairs of all ranks, its gradients, and the scale as a figure."""
    image, text = (torch.cat([one.features[side] for one in embedded]) for side in (0, 1))
    coupled = loss(image, text, embedded[0].shared, config, group)
    sizes = [len(one.features[0]) for one in embedded]
    gradients = [
        tuple(pair)
        for pair in zip(coupled.first_gradient.split(sizes), coupled.second_gradient.split(sizes), strict=True)
    ]
    shared: tuple[torch.Tensor, ...] = (coupled.log_scale_gradient,)
    figures = {"logit_scale": embedded[0].shared[0].exp()}
    if coupled.bias_gradient is not None:
        shared += (coupled.bias_gradient,)
        figures["logit_bias"] = embedded[0].shared[1]
    samples = coupled.sample_losses.split(sizes)
    return Coupling(gradients, shared, [{"sample_losses": losses, **figures} for losses in samples])


def held_out_loss(
    first: torch.Tensor,
    second: torch.Tensor,
    shared: Sequence[torch.Tensor],
    config: CLIPConfig,
    group: dist.ProcessGroup | None,
) -> torch.Tensor:
    """The loss that `config.loss` names of image and text features `[n, d]`, a scalar."""
    return loss(first, second, shared, config, group).loss


def loss(
    image: torch.Tensor,
    text: torch.Tensor,
    shared: Sequence[torch.Tensor],
    config: CLIPConfig,
    group: dist.ProcessGroup | None,
) -> Coupled:
    """The loss that `config.loss` names; `shared` is the logarithm of the scale, and of the sigmoid loss the bias."""
    if config.loss == "sigmoid":
        log_scale, bias = shared
        return sigmoid_loss(image, text, log_scale, bias, group=group, tile=config.loss_tile)
    chosen = nt_xent_loss if config.loss == "nt_xent" else clip_loss
    return chosen(image, text, shared[0], group=group, tile=config.loss_tile)
