"""Which stored piece holds what: the records of all ranks, by tensor.

Built once by every rank that loads, over all pieces of all ranks: some million with ZeRO-3 on a thousand ranks. So it
keeps tuples and checks each distinct box once; objects are made only for the few pieces that a read touches.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from training.checkpoint.format import DTYPES_BY_NAME
from training.checkpoint.pieces import Piece, Rectangle, Shape, flat_index


class Stored(NamedTuple):
    """A flat range of a box as it lies in a file: for each kind its dtype and the offset of its first byte."""

    start: int
    stop: int
    file: str
    kinds: dict[str, tuple[torch.dtype, int]]


@dataclass
class Box:
    """All stored flat ranges of one box of a tensor, by where they begin."""

    piece: Piece  # an empty one: it carries the shapes
    stored: list[Stored] = field(default_factory=list)
    _starts: list[int] = field(default_factory=list)
    _furthest: list[int] = field(default_factory=list)  # running maximum of the stops: ranges may overlap

    @property
    def rectangle(self) -> Rectangle:
        return Rectangle(self.piece.box_offset, self.piece.box_shape)

    def touching(self, wanted: Rectangle, kind: str) -> Iterator[tuple[Piece, Stored]]:
        """What may hold elements of `wanted`: a part of each stored piece of this kind, from the first to the last."""
        common = wanted.intersect(self.rectangle)
        if common is None:
            return
        if not self._starts:
            self.stored.sort(key=lambda stored: stored[:3])
            self._starts = [stored.start for stored in self.stored]
            self._furthest = list(itertools.accumulate((stored.stop for stored in self.stored), max))
        origin, shape = self.piece.box_offset, self.piece.box_shape
        first = flat_index(tuple(a - b for a, b in zip(common.offset, origin, strict=True)), shape)
        last = flat_index(tuple(a - b - 1 for a, b in zip(common.stop, origin, strict=True)), shape)
        for stored in self.stored[bisect_right(self._furthest, first) : bisect_right(self._starts, last)]:
            if kind in stored.kinds:
                start, stop = max(first, stored.start), min(last + 1, stored.stop)
                if start < stop:
                    yield Piece(self.piece.name, kind, self.piece.global_shape, origin, shape, start, stop), stored


class Index:
    """The stored pieces of all tensors by name."""

    def __init__(self) -> None:
        self._boxes: dict[str, dict[tuple[Shape, Shape, Shape], Box]] = defaultdict(dict)

    def add(self, file: str, size: int, pieces: list[dict[str, Any]]) -> None:
        """Add the pieces of a rank's record, which lie in `file` of `size` bytes.

        Raises ValueError, KeyError or TypeError for a record that no writer wrote.
        """
        for raw in pieces:
            shapes = tuple(raw["global_shape"]), tuple(raw["box_offset"]), tuple(raw["box_shape"])
            start, stop = raw["flat"]
            boxes = self._boxes[raw["name"]]
            box = boxes.get(shapes)
            if box is None:
                box = boxes[shapes] = Box(Piece(raw["name"], "weight", *shapes, 0, 0))
            if type(start) is not int or type(stop) is not int or not 0 <= start < stop <= box.rectangle.numel:
                raise ValueError(f"flat range {raw['flat']} of {raw['name']}")
            kinds = {kind: (DTYPES_BY_NAME[dtype], offset) for kind, (dtype, offset) in raw["kinds"].items()}
            for dtype, offset in kinds.values():
                if type(offset) is not int or offset < 0 or offset + (stop - start) * dtype.itemsize > size:
                    raise ValueError(f"a piece of {raw['name']} lies outside its file")
            box.stored.append(Stored(start, stop, file, kinds))

    def names(self) -> list[str]:
        """All tensors, sorted."""
        return sorted(self._boxes)

    def kinds(self, name: str) -> list[str]:
        """The kinds stored of a tensor, sorted; [] if there is no such tensor."""
        boxes = self._boxes.get(name, {}).values()
        return sorted({kind for box in boxes for stored in box.stored for kind in stored.kinds})

    def boxes(self, name: str) -> list[Box]:
        """The boxes stored of a tensor; [] if there is no such tensor."""
        return list(self._boxes.get(name, {}).values())
