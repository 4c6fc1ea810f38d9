"""What autograd keeps of a forward pass, and what a backward pass adds to it, by formula and in bytes.

A network is described as groups of equal blocks, a block as segments, a segment as a chain of steps; a step says what
it saves and what its backward pass makes. `walk` goes back through them as autograd does (the gradient of a step's
result and what it saved are freed once its own gradients exist) and finds the fullest moment. It looks at the first and
the last block of each group alone: in between memory changes linearly.

After Korthikanti et al. 2022, section 4, where it applies; the rest was read off allocations one by one
(tests/distributed/test_memory.py compares whole steps). Without torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

FP32 = 4
SCRATCH = 100_000
"""Bytes that oneDNN takes for a bf16 product on a CPU and gives back: 75 to 230 kB where products are small."""


@dataclass(frozen=True)
class Run:
    """How a micro-batch is run."""

    samples: int
    """Of a micro-batch."""
    element: int
    """Bytes of an activation."""
    recompute: str = "none"
    device: Literal["cpu", "cuda"] = "cuda"
    compiled: bool = False
    documents: bool = False
    """Whether documents are kept apart by a mask."""

    @property
    def scratch(self) -> int:
        """Bytes that a product takes and gives back."""
        return SCRATCH if self.device == "cpu" and self.element < FP32 else 0


@dataclass(frozen=True)
class Op:
    """A step of forward. Bytes, but for `weight`."""

    saved: float = 0.0
    """Kept from its forward to its backward."""
    into: float = 0.0
    """The gradient of what it was given."""
    weight: float = 0.0
    """Elements of the matrix whose gradient it makes."""
    work: float = 0.0
    """What its backward has beside the gradients of result and input."""
    joins: bool = False
    """The gradient of what it was given is added to that of the residual stream."""
    waits: bool = False
    """The matrix is used before, too: its gradient waits for the one from there."""


@dataclass(frozen=True)
class Segment:
    """Steps one after the other; with `kept`, computed again in backward and keeping so much instead of `saved`."""

    ops: tuple[Op, ...]
    kept: float | None = None

    @property
    def saved(self) -> float:
        return sum(op.saved for op in self.ops)

    @property
    def held(self) -> float:
        """From forward to backward."""
        return self.saved if self.kept is None else self.kept


@dataclass(frozen=True)
class Block:
    """Segments one after the other; with `kept`, all of them are computed again in backward."""

    segments: tuple[Segment, ...]
    stream: float = 0.0
    """The gradient of the residual stream, which is there throughout: also that of each branch's result."""
    kept: float | None = None

    @property
    def inner(self) -> float:
        return sum(segment.held for segment in self.segments)

    @property
    def held(self) -> float:
        """From forward to backward."""
        return self.inner if self.kept is None else self.kept

    @property
    def ops(self) -> list[Op]:
        return [op for segment in self.segments for op in segment.ops]


@dataclass(frozen=True)
class Chunk:
    """What one rank runs of a micro-batch without a break: groups of equal blocks, in forward order."""

    groups: tuple[tuple[int, Block], ...]
    extra: float = 0.0
    """Kept with each micro-batch beside: a result that was sent on, positions."""

    @property
    def held(self) -> float:
        """Bytes from a micro-batch's forward to its backward."""
        return self.extra + sum(count * block.held for count, block in self.groups)


@dataclass(frozen=True)
class Activations:
    """Of one rank of one pipeline stage."""

    chunks: tuple[Chunk, ...]
    logits: float = 0.0
    """Bytes that stay for the loss's derivative, from step to step."""
    logits_work: float = 0.0
    """Bytes more in the forward of the loss, beside what its chunk holds then."""
    buffers: float = 0.0
    """Bytes of what is made once, such as the frequencies of rotary positions, and of buffers for receiving."""
    inputs: float = 0.0
    """Bytes of one micro-batch's inputs."""
    handed: float = 0.0
    """Bytes of a gradient that goes back to the stage before; there until the next one is ready."""

    @property
    def unlike(self) -> list[Chunk]:
        """The chunks that differ from the one before: of many chunks a stage most are alike."""
        return [one for before, one in zip((None, *self.chunks), self.chunks, strict=False) if one != before]


@dataclass(frozen=True)
class Gradients:
    """What becomes of a weight's gradient in backward: bytes for each of its elements."""

    made: float
    """While it is made."""
    added: float
    """While it is added to others or copied, after what the step saved is gone."""
    stays: float
    """Afterwards: where it is not added to what is there."""


@dataclass(frozen=True)
class Moment:
    """The fullest moment of a backward pass."""

    activations: float
    gradients: float
    """Of weights, not yet where they accumulate, or without a place to accumulate in."""

    @property
    def total(self) -> float:
        return self.activations + self.gradients


def walk(chunk: Chunk, gradients: Gradients) -> Moment:
    """The fullest moment of a micro-batch's backward through a chunk, its own saved tensors included."""
    live, done = chunk.held, 0.0
    fullest = (live, 0.0)
    for count, block in reversed(chunk.groups):
        held = block.held
        stay = sum(op.weight * (gradients.made if op.waits else gradients.stays) for op in block.ops)
        for left in (count, 1) if count > 1 else (1,):
            gone = count - left
            for moment in _back(block, live - gone * held, done + gone * stay, gradients):
                if moment[0] + moment[1] > fullest[0] + fullest[1]:
                    fullest = moment
        live -= count * held
        done += count * stay
    return Moment(*fullest)


def _back(block: Block, live: float, done: float, gradients: Gradients) -> Iterator[tuple[float, float]]:
    """Every moment of one block's backward, as in `Moment`, beginning with `live` bytes saved and `done` bytes of
    gradients.
    """
    if block.kept is not None:
        live += block.inner - block.kept
    coming = 0.0
    for segment in reversed(block.segments):
        if segment.kept is not None:
            live += segment.saved - segment.kept
        for op in reversed(segment.ops):
            now = live + block.stream + coming
            yield now + op.into + op.work, done + op.weight * gradients.made
            live -= op.saved
            coming = op.into
            added, stays = (gradients.made,) * 2 if op.waits else (gradients.added, gradients.stays)
            yield live + block.stream + coming, done + op.weight * added
            done += op.weight * stays
            if op.joins:
                coming = 0.0
