"""A matrix of similarities that never exists as a whole: visited tile by tile, in a few buffers that are used again.

S = s X Y^T for the scale s. Exponentials of S are the costly part beside the matrix products, so that where the numbers
allow it one serves rows and columns alike: exp(S_ij - c) times a factor of the row or of the column.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F

_TILES = {
    "cpu": 1024,
    "cuda": 4096,
}  # per dtype of 4 bytes: 4 MiB fit in the caches of a core or two; a GPU wants more work at a time


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

    def similarities(self, x: torch.Tensor, y: torch.Tensor, number: int = 0) -> torch.Tensor:
        """s x y^T of `[rows, d]` and `[columns, d]`, in buffer `number`."""
        tile = self.buffer(number, x.shape[0], y.shape[0])
        # A sum of d products rounds d times near its final size. A few sums of fewer cost the same and round less:
        # at scale 100 three times as accurate, and all that is small here is an exponential of this.
        width = max(8, -(-x.shape[1] // 4))
        parts = zip(x.split(width, 1), y.split(width, 1), strict=True)
        for number_of_part, (left, right) in enumerate(parts):
            torch.addmm(tile, left, right.t(), beta=min(number_of_part, 1), alpha=self.scale, out=tile)
        return tile
