"""A matrix of similarities that never exists as a whole: visited tile by tile, in a few buffers that are used again.

S = s X Y^T for the scale s. Exponentials of S are the costly part beside the matrix products, so that where the numbers
allow it one serves rows and columns alike: exp(S_ij - c) times a factor of the row or of the column.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F

# In fp32 4 MiB, which the caches of a CPU hold; and 16 MiB, for a GPU wants more work at a time
# (four times as much again is a quarter faster, and three buffers of it more than the loss may take).
_TILES = {"cpu": 1024, "cuda": 2048}
_FEW = 64  # features, see `Tiles.similarities`


def default_tile(device: torch.device) -> int:
    return _TILES.get(device.type, _TILES["cuda"])


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32 and no bf16 in the matrix products of fp32: 10 bits of S at scale 100 would be noise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False), torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def softplus(x: torch.Tensor) -> torch.Tensor:
    """log(1 + exp x) to the last digit: fp64 has 36 nats of them, and torch's own stops at 20."""
    return F.softplus(x, threshold=40.0)


class Tiles:
    """Tiles of one call: their size, their buffers, and the scale.

    Args:
        scale: s.
        like: a tensor with the dtype and the device to compute in.
        size: rows and columns of a tile.
    """

    def __init__(self, scale: float, like: torch.Tensor, rows: int, columns: int, size: int) -> None:
        self.scale = scale
        self._size = size
        self._like = like
        self._shape = (min(size, rows), min(size, columns))
        self._buffers: list[torch.Tensor] = []
        # exp() of twice this is finite, of minus twice this is not a subnormal yet.
        self.reach = 40.0 if like.dtype == torch.float32 else 300.0

    def blocks(self, length: int) -> Iterator[slice]:
        """`length` rows or columns, in order, a tile's worth at a time."""
        for low in range(0, length, self._size):
            yield slice(low, min(low + self._size, length))

    def buffer(self, number: int, rows: int, columns: int) -> torch.Tensor:
        """Buffer `number` in the shape of a tile; holds whatever was left in it."""
        while len(self._buffers) <= number:
            self._buffers.append(self._like.new_empty(self._shape[0] * self._shape[1]))
        return self._buffers[number][: rows * columns].view(rows, columns)

    def similarities(self, x: torch.Tensor, y: torch.Tensor, less: float = 0.0) -> torch.Tensor:
        """s x y^T - less of `[rows, d]` and `[columns, d]`, in buffer 0."""
        tile = self.buffer(0, x.shape[0], y.shape[0])
        features = x.shape[1]
        if x.dtype == torch.float32 and features <= _FEW:
            # At scale 100 a similarity near 100 is off by 4e-6 in fp32, and so is its exponential relative to its
            # size. Few features give few sums to drown that in, and make fp64 cheap.
            return tile.copy_(torch.mm(x.double(), y.double().t()).mul_(self.scale).sub_(less))
        # A sum of d products rounds d times near its final size. A few sums of fewer cost the same and round less:
        # at scale 100 up to three times.
        width = -(-features // 4)
        for number, (left, right) in enumerate(zip(x.split(width, 1), y.split(width, 1), strict=True)):
            torch.addmm(tile, left, right.t(), beta=min(number, 1), alpha=self.scale, out=tile)
        return tile.sub_(less) if less else tile
