"""A checkpoint as a table: what is in it, how large, and whether it is whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from training.checkpoint.errors import DamagedCheckpoint
from training.checkpoint.pieces import Piece, Shape
from training.checkpoint.reader import Checkpoint
from training.checkpoint.source import Source

_CHUNK = 4 << 20  # elements read at a time: 16 MiB of fp32, whatever the tensor's size


@dataclass(frozen=True)
class Row:
    """One tensor. Minimum, maximum and mean are those of its finite weights (of its first kind if it has no weight).

    `nan` counts NaN and `infinite` ±inf in all kinds. The statistics are None where the checkpoint is damaged.
    """

    name: str
    shape: Shape
    kinds: tuple[str, ...]
    nbytes: int
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    nan: int | None = None
    infinite: int | None = None


@dataclass(frozen=True)
class Summary:
    """A checkpoint's rows and health; `damages` is empty when every file is what its manifest says."""

    path: Path | str
    step: int | None = None
    world_size: int | None = None
    nbytes: int = 0
    rows: list[Row] = field(default_factory=list)
    damages: list[str] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def health(self) -> str:
        return "; ".join(self.damages) if self.damages else "verified"

    @property
    def parameters(self) -> int:
        """Elements of all tensors, each counted once."""
        return sum(math.prod(row.shape) for row in self.rows)


def summarise(path: Path | Source, statistics: bool = True) -> Summary:
    """Verify a checkpoint and describe its tensors, one at a time and in bounded memory.

    A damaged checkpoint is described as far as it can be, without statistics. Raises UnknownFormat.
    """
    try:
        checkpoint = Checkpoint(path)
    except DamagedCheckpoint as damage:
        where = path if isinstance(path, Path) else path.location
        return Summary(where, damages=[_one_line(damage)])
    damages = [_one_line(damage) for damage in checkpoint.damages()]
    rows: list[Row] = []
    try:
        rows.extend(_rows(checkpoint, statistics and not damages))
    except DamagedCheckpoint as damage:  # a record is unreadable, hence nobody knows what the files hold
        if _one_line(damage) not in damages:
            damages.append(_one_line(damage))
    nbytes = sum(about["size"] for about in checkpoint.manifest["files"].values())
    return Summary(checkpoint.path, checkpoint.step, checkpoint.world_size, nbytes, rows, damages, checkpoint.state)


def _rows(checkpoint: Checkpoint, statistics: bool) -> Iterator[Row]:
    for name in checkpoint.names():
        kinds = checkpoint.kinds(name)
        kinds.sort(key=lambda kind: (kind != "weight", kind))
        row = Row(name, checkpoint.shape(name, kinds[0]), tuple(kinds), checkpoint.nbytes(name))
        yield _with_statistics(checkpoint, row) if statistics else row


def _with_statistics(checkpoint: Checkpoint, row: Row) -> Row:
    first, *others = [_Statistics(checkpoint, row.name, kind) for kind in row.kinds]
    return Row(
        row.name,
        row.shape,
        row.kinds,
        row.nbytes,
        minimum=first.minimum if first.finite else None,
        maximum=first.maximum if first.finite else None,
        mean=first.total / first.finite if first.finite else None,
        nan=sum(part.nan for part in (first, *others)),
        infinite=sum(part.infinite for part in (first, *others)),
    )


class _Statistics:
    def __init__(self, checkpoint: Checkpoint, name: str, kind: str) -> None:
        self.minimum, self.maximum, self.total = math.inf, -math.inf, 0.0
        self.finite = self.nan = self.infinite = 0
        whole = Piece.whole(name, kind, checkpoint.shape(name, kind))
        for start in range(0, whole.numel, _CHUNK):
            stop = min(start + _CHUNK, whole.numel)
            shape = whole.global_shape
            self._add(checkpoint.read(Piece(name, kind, shape, whole.box_offset, shape, start, stop)))

    def _add(self, values: torch.Tensor) -> None:
        self.nan += int(values.isnan().sum())
        self.infinite += int(values.isinf().sum())
        finite = values[values.isfinite()]
        if finite.numel():
            self.finite += finite.numel()
            self.minimum = min(self.minimum, float(finite.min()))
            self.maximum = max(self.maximum, float(finite.max()))
            self.total += float(finite.double().sum())


def _one_line(damage: DamagedCheckpoint) -> str:
    return f"{damage.file}: {damage.what}"
