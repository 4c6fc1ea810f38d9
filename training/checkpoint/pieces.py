"""The geometry of a tensor cut into pieces, whoever cut it.

A piece is a flat range of the row-major flattening of a box of a global tensor: the box is what tensor parallelism
leaves to a rank, the flat range what ZeRO leaves of it. Such a range is not a box itself, but the disjoint union of at
most 2·ndim - 1 boxes, each of them contiguous in the piece's own 1-D buffer. Everything below rests on that: any two
pieces of the same tensor meet in a few boxes, and those are copied as strided views.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

Shape = tuple[int, ...]

_KIND = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Piece:
    """Elements [flat_start, flat_stop) of the row-major flattening of a box of the tensor (name, kind).

    The box starts at `box_offset` (global coordinates) and has shape `box_shape`; `kind` is "weight", "exp_avg" or
    "exp_avg_sq". A scalar has the shapes (). Raises ValueError when the parts contradict each other.
    """

    name: str
    kind: str
    global_shape: Shape
    box_offset: Shape
    box_shape: Shape
    flat_start: int
    flat_stop: int

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a piece needs the global name of its tensor")
        if not _KIND.fullmatch(self.kind):
            raise ValueError(f"piece of {self.name}: kind {self.kind!r} is not a lower-case word")
        for field in ("global_shape", "box_offset", "box_shape"):
            shape = getattr(self, field)
            if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
                raise ValueError(f"piece of {self.name}: {field} {shape!r} is not a tuple of non-negative integers")
        if not len(self.global_shape) == len(self.box_offset) == len(self.box_shape):
            raise ValueError(
                f"piece of {self.name}: global shape {self.global_shape}, box offset {self.box_offset} and box shape "
                f"{self.box_shape} differ in their number of dimensions"
            )
        for size, offset, extent in zip(self.global_shape, self.box_offset, self.box_shape, strict=True):
            if offset + extent > size:
                box = f"{self.box_offset}+{self.box_shape}"
                raise ValueError(f"piece of {self.name}: box {box} leaves the tensor {self.global_shape}")
        if not 0 <= self.flat_start <= self.flat_stop <= math.prod(self.box_shape):
            raise ValueError(
                f"piece of {self.name}: flat range [{self.flat_start}, {self.flat_stop}) leaves its box of "
                f"{math.prod(self.box_shape)} elements"
            )

    @classmethod
    def whole(cls, name: str, kind: str, shape: Shape) -> Piece:
        """The entire tensor as one piece."""
        return cls(name, kind, shape, (0,) * len(shape), shape, 0, math.prod(shape))

    @property
    def numel(self) -> int:
        return self.flat_stop - self.flat_start

    @property
    def is_whole_box(self) -> bool:
        return self.flat_start == 0 and self.flat_stop == math.prod(self.box_shape)

    def rectangles(self) -> list[tuple[Rectangle, int]]:
        """The piece as disjoint rectangles in global coordinates, each with its offset in the piece's 1-D buffer."""
        found = []
        position = 0
        for rectangle in decompose(self.box_shape, self.flat_start, self.flat_stop):
            moved = tuple(a + b for a, b in zip(rectangle.offset, self.box_offset, strict=True))
            found.append((Rectangle(moved, rectangle.shape), position))
            position += rectangle.numel
        return found


class Rectangle(NamedTuple):
    """A box [offset, offset + shape) in global coordinates."""

    offset: Shape
    shape: Shape

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def stop(self) -> Shape:
        return tuple(a + b for a, b in zip(self.offset, self.shape, strict=True))

    def intersect(self, other: Rectangle) -> Rectangle | None:
        """What both contain, None if that is nothing."""
        offset = tuple(map(max, self.offset, other.offset))
        shape = tuple(b - a for a, b in zip(offset, map(min, self.stop, other.stop), strict=True))
        return Rectangle(offset, shape) if all(n > 0 for n in shape) else None

    def subtract(self, inner: Rectangle) -> Iterator[Rectangle]:
        """What remains without `inner`, which must lie inside: at most 2·ndim disjoint rectangles."""
        offset, stop = list(self.offset), list(self.stop)
        for dim, (start, end) in enumerate(zip(inner.offset, inner.stop, strict=True)):
            for low, high in ((offset[dim], start), (end, stop[dim])):
                if low < high:
                    cut = (*offset[:dim], low, *offset[dim + 1 :])
                    yield Rectangle(
                        cut, tuple(b - a for a, b in zip(cut, (*stop[:dim], high, *stop[dim + 1 :]), strict=True))
                    )
            offset[dim], stop[dim] = start, end

    def view_in(self, buffer: torch.Tensor, outer: Rectangle, position: int) -> torch.Tensor:
        """This rectangle as a view of `buffer` (1-D), in which `outer` around it lies contiguously from `position`."""
        block = buffer[position : position + outer.numel].view(outer.shape)
        for dim, (start, extent, base) in enumerate(zip(self.offset, self.shape, outer.offset, strict=True)):
            block = block.narrow(dim, start - base, extent)
        return block


def decompose(shape: Shape, start: int, stop: int) -> list[Rectangle]:
    """Flat range [start, stop) of a box of `shape` as disjoint rectangles in flat order: at most 2·ndim - 1 of them.

    Each is a single row-major run: leading coordinates fixed, one range, the remaining dimensions whole.
    """
    if start >= stop:
        return []
    if not shape:
        return [Rectangle((), ())]
    row = math.prod(shape[1:])
    first, head = divmod(start, row)
    last, tail = divmod(stop, row)
    if first == last:
        return [_under(first, inner) for inner in decompose(shape[1:], head, tail)]
    rectangles = []
    if head:
        rectangles += [_under(first, inner) for inner in decompose(shape[1:], head, row)]
        first += 1
    if first < last:
        rectangles.append(Rectangle((first,) + (0,) * (len(shape) - 1), (last - first, *shape[1:])))
    if tail:
        rectangles += [_under(last, inner) for inner in decompose(shape[1:], 0, tail)]
    return rectangles


def _under(index: int, inner: Rectangle) -> Rectangle:
    return Rectangle((index, *inner.offset), (1, *inner.shape))


def flat_index(coordinates: Shape, shape: Shape) -> int:
    """The row-major index of `coordinates` in a box of `shape`."""
    index = 0
    for coordinate, size in zip(coordinates, shape, strict=True):
        index = index * size + coordinate
    return index


class Assembly:
    """A piece put together from others, which may be cut in any way and may overlap.

    `buffer` is the piece's 1-D data; `missing` are the rectangles that no source has covered yet.
    """

    def __init__(self, target: Piece, dtype: torch.dtype = torch.float32) -> None:
        self.buffer = torch.empty(target.numel, dtype=dtype)
        self._parts = target.rectangles()
        self._uncovered = [[rectangle] for rectangle, _ in self._parts]

    @property
    def missing(self) -> list[Rectangle]:
        return [rectangle for part in self._uncovered for rectangle in part]

    def fill(self, source: Piece, data: torch.Tensor) -> None:
        """Copy from `source`, whose elements are `data` (1-D, any dtype), what is still missing."""
        for rectangle, position in source.rectangles():
            self._fill_rectangle(rectangle, position, data)

    def _fill_rectangle(self, available: Rectangle, position: int, data: torch.Tensor) -> None:
        for index, (outer, at) in enumerate(self._parts):
            if outer.intersect(available) is None:
                continue
            left: list[Rectangle] = []
            for wanted in self._uncovered[index]:
                common = wanted.intersect(available)
                if common is None:
                    left.append(wanted)
                    continue
                common.view_in(self.buffer, outer, at).copy_(common.view_in(data, available, position))
                left.extend(wanted.subtract(common))
            self._uncovered[index] = left
