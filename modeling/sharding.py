"""What a rank's parameter is a part of: its global name, its global shape, the box it fills, and how it starts.

A description belongs to no layout, so checkpoints and initial weights are written in its terms. Global shapes leave the
vocabulary's padding out: how far it is padded must not show in anything that is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modeling.initialization import fill_normal, numel


@dataclass(frozen=True)
class Shard:
    """One rank's part of one global parameter."""

    name: str
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    """Where the box begins in the global tensor."""
    shape: tuple[int, ...]
    """The box; its elements are the first `numel` of the flattened local parameter."""
    local_numel: int
    """Elements of the local parameter, padding rows included."""
    initial: float
    """Standard deviation of the initial values where `normal`, else their constant value."""
    normal: bool
    decay: bool
    """Whether weight decay applies (matrices only)."""
    replicas: int = 1
    """Tensor-parallel ranks that hold this very box."""
    replica: int = 0
    """This rank's number among them."""
    tied_copy: bool = False
    """A second copy, on the last pipeline stage, of a parameter that the first stage owns."""
    maximum: float | None = None
    """What every update is clamped to from above."""

    @property
    def numel(self) -> int:
        """Elements that exist in the global tensor: the local ones without padding."""
        return numel(self.shape)

    def initial_values(self, seed: int, start: int, stop: int, device: torch.device) -> torch.Tensor:
        """Initial values, fp32 `[stop - start]`, of the local flat range; padding rows start (and stay) at 0."""
        values = torch.zeros(stop - start, dtype=torch.float32, device=device)
        real = values[: max(0, min(stop, self.numel) - start)]
        if not self.normal:
            real.fill_(self.initial)
        elif real.numel():
            fill_normal(
                real,
                seed=seed,
                name=self.name,
                std=self.initial,
                global_shape=self.global_shape,
                offset=self.offset,
                shape=self.shape,
                start=start,
            )
        return values


def fill(parameter: torch.nn.Parameter, shard: Shard, seed: int) -> None:
    """Set a whole local parameter to its initial values, rounded to its dtype."""
    with torch.no_grad():
        values = shard.initial_values(seed, 0, shard.local_numel, parameter.device)
        parameter.copy_(values.view_as(parameter))
