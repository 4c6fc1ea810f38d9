"""What a family offers whose loss couples the samples of a batch: features of a micro-batch, and a loss over all of
them with its gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Embedded:
    """A micro-batch's outputs."""

    features: tuple[torch.Tensor, ...]
    """Each `[b, d]`, one row a sample: image and text of CLIP."""
    shared: tuple[torch.Tensor, ...] = ()
    """Scalars that are not of a sample, such as the logarithm of the scale."""

    def detached(self) -> Embedded:
        """The same values without a graph."""
        return Embedded(tuple(f.detach() for f in self.features), tuple(s.detach() for s in self.shared))


@dataclass(frozen=True)
class Coupling:
    """What a loss over the global batch gives back to this rank's micro-batches."""

    gradients: list[tuple[torch.Tensor, ...]]
    """For each micro-batch the true gradient of the loss with respect to each of its features."""
    shared: tuple[torch.Tensor, ...]
    """The whole gradient of each shared scalar, equal on every rank."""
    figures: list[dict[str, torch.Tensor]]
    """For each micro-batch: `sample_losses` `[b]`, whose mean over the global batch is the loss, and what else is
    reported.
    """
