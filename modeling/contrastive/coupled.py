"""What a contrastive loss gives: its value and every gradient, made together and without an autograd graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Coupled:
    """A loss over the pairs of all ranks, and this rank's part of its gradients.

    fp32, or fp64 where the features are. Gradients are the true ones of the one loss over the global batch: nothing is
    multiplied or divided by the number of ranks.
    """

    loss: torch.Tensor
    """Scalar: the mean over the global batch, equal on every rank."""

    sample_losses: torch.Tensor
    """`[n_local]`: each pair's share; their mean over the global batch is `loss`."""

    first_gradient: torch.Tensor
    """`[n_local, d]`: d loss / d first."""

    second_gradient: torch.Tensor
    """`[n_local, d]`: d loss / d second."""

    log_scale_gradient: torch.Tensor
    """Scalar: d loss / d log_scale, summed over the ranks already."""

    bias_gradient: torch.Tensor | None = None
    """Scalar: d loss / d bias, summed over the ranks already; None for a loss without a bias."""
