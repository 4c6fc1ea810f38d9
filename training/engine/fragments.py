"""What a rank holds of the optimizer's state: flat runs of its local parameters, each with master weight and
moments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from modeling.sharding import Shard
from training.checkpoint import Piece

KINDS = ("weight", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + n) of one flattened local parameter: fp32 master weight and Adam's two moments, each
    `[n]`.

    The tensors are the optimizer's own storage: writing to them changes the run.
    """

    shard: Shard
    start: int
    weight: torch.Tensor
    exp_avg: torch.Tensor | None
    """None, like the other moment, of a parameter that is frozen."""
    exp_avg_sq: torch.Tensor | None
    copies: int = 1
    """Data-parallel ranks that hold this very fragment (all of them without ZeRO)."""
    copy: int = 0
    """This rank's number among them."""

    @property
    def real(self) -> int:
        """Elements that are not vocabulary padding (which lies at the end)."""
        return max(0, min(self.weight.numel(), self.shard.numel - self.start))

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for kind in KINDS:
            tensor = getattr(self, kind)
            if tensor is not None:
                yield kind, tensor

    def piece(self, kind: str, low: int, high: int) -> Piece:
        """Elements [low, high) of this fragment in a checkpoint's terms."""
        shard = self.shard
        return Piece(
            name=shard.name,
            kind=kind,
            global_shape=shard.global_shape,
            box_offset=shard.offset,
            box_shape=shard.shape,
            flat_start=self.start + low,
            flat_stop=self.start + high,
        )

    def owned(self) -> tuple[int, int]:
        """The range of this fragment that this rank writes: ranks that hold the same elements divide them."""
        if self.shard.tied_copy:
            return 0, 0
        n, parts = self.real, self.shard.replicas * self.copies
        part = self.shard.replica * self.copies + self.copy
        return n * part // parts, n * (part + 1) // parts
