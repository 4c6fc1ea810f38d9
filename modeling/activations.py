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
RANDOM_STATE = 5056
"""Bytes of a CPU generator's state; a recomputed segment on a CPU keeps `RANDOM_STATES` of them."""
RANDOM_STATES = 4


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


def fuller(one: Moment, other: Moment) -> Moment:
    return one if one.total >= other.total else other


def walk(chunk: Chunk, gradients: Gradients) -> Moment:
    """The fullest moment of a micro-batch's backward through a chunk, its own saved tensors included."""
    live, done = chunk.held, 0.0
    fullest = Moment(live, 0.0)
    for count, block in reversed(chunk.groups):
        stay = sum(op.weight * (gradients.made if op.waits else gradients.stays) for op in block.ops)
        for left in sorted({1, count}, reverse=True):
            for moment in _back(block, live - (count - left) * block.held, done + (count - left) * stay, gradients):
                fullest = fuller(moment, fullest)
        live -= count * block.held
        done += count * stay
    return fullest


def _back(block: Block, live: float, done: float, gradients: Gradients) -> Iterator[Moment]:
    """Every moment of one block's backward, beginning with `live` bytes saved and `done` bytes of gradients."""
    if block.kept is not None:
        live += block.inner - block.kept
    coming = 0.0
    for segment in reversed(block.segments):
        if segment.kept is not None:
            live += segment.saved - segment.kept
        for op in reversed(segment.ops):
            now = live + block.stream + coming
            yield Moment(now + op.into + op.work, done + op.weight * gradients.made)
            live -= op.saved
            coming = op.into
            after = gradients.made if op.waits else gradients.added
            yield Moment(live + block.stream + coming, done + op.weight * after)
            done += op.weight * (gradients.made if op.waits else gradients.stays)
            if op.joins:
                coming = 0.0


@dataclass(frozen=True)
class Transformer:
    """A pre-norm layer's sizes on one rank, as `modeling.transformer.layer_spec` builds it.

    On a CPU it differs from a GPU in the kernels: see `_attention` and `_norm`. With `compiled`, what torch.compile's
    partitioner saves is close to what eager mode does, since matrix products are kept and pointwise steps are computed
    again or fused: pointwise results that only feed pointwise steps are left out.
    """

    hidden: int
    heads: int
    kv: int
    """Width of all keys."""
    ffn: int
    positions: int
    tensor: int = 1
    sequence: bool = False
    gated: bool = False
    sigmoid: bool = False
    """The nonlinearity is x sigmoid(1.702 x), in three steps."""
    rms: bool = False
    biases: bool = True
    rotary: bool = False
    causal: bool = True
    dropout: bool = False

    def block(self, run: Run) -> Block:
        """One layer."""
        stream = self.stream(run)
        states = RANDOM_STATES * RANDOM_STATE if run.device == "cpu" else 0.0
        attention, mlp = self._attention_steps(run), self._mlp_steps(run)
        if run.recompute == "selective":
            norm, *inner = mlp
            segments = (
                Segment(tuple(attention[:2])),
                Segment((attention[2],), kept=self._core_kept(run) + states),
                Segment((*attention[3:], norm)),
                Segment(tuple(inner), kept=stream + states),
            )
            return Block(segments, stream)
        kept = stream + states if run.recompute == "full" else None
        return Block((Segment((*attention, *mlp)),), stream, kept)

    def tokens(self, run: Run) -> float:
        return float(self.positions * run.samples)

    def stream(self, run: Run) -> float:
        """Bytes of the residual stream."""
        return self.tokens(run) * self.hidden * run.element / (self.tensor if self.sequence else 1)

    def norm(self, run: Run) -> Op:
        """LayerNorm keeps its input and two numbers a token; so does RMSNorm, with one, but on a CPU, where it is not
        one kernel: an fp32 copy of the input and the normalised one, in fp32 too.
        """
        stream, tokens = self.stream(run), self.tokens(run) / (self.tensor if self.sequence else 1)
        if not self.rms:
            width = run.element if run.device == "cpu" else FP32
            return Op(stream + 2 * tokens * width, stream, joins=True)
        if run.device == "cuda":
            return Op(stream + FP32 * tokens, stream, joins=True)
        wide = FP32 * stream / run.element
        return Op(2 * wide + FP32 * tokens, stream, work=3 * wide, joins=True)

    def _attention_steps(self, run: Run) -> list[Op]:
        h, stream = self.hidden, self.stream(run)
        wide = self.tokens(run) * run.element / self.tensor
        qkv = wide * (h + 2 * self.kv)
        whole = self.tokens(run) * h * run.element  # what sequence parallelism gathers
        gathered = whole if self.sequence else 0.0
        ops = [
            self.norm(run),
            Op(stream, whole, weight=h * (h + 2 * self.kv) / self.tensor, work=gathered),
            self._core(run, qkv, wide * h),
            Op(0.0, wide * h, weight=h * h / self.tensor, work=gathered),
        ]
        if self.dropout:
            ops.append(self.mask(run))
        return ops

    def mask(self, run: Run) -> Op:
        """Dropout on a GPU keeps a byte an element; on a CPU it is a product with a mask of the result's type."""
        stream = self.stream(run)
        return Op(stream if run.device == "cpu" else stream / run.element, stream)

    def _core(self, run: Run, qkv: float, out: float) -> Op:
        """Attention between the projections: queries, keys, values and the result, which the next product saves too.

        torch's kernels keep fp32 logsumexps beside (Dao et al. 2022). The blockwise one of
        `modeling.blockwise_attention` keeps the weights of the softmax, in blocks of 128 queries up to their own end.
        Dropout on a CPU takes torch's plain composition: fp32 weights, mask and product.
        """
        heads = self.heads / self.tensor
        rows = self.tokens(run) * heads
        turned = self._turned(run)
        if self.dropout and run.device == "cpu":
            squares = rows * self.positions * FP32
            wide = FP32 * out / run.element
            return Op(qkv + turned + 2 * wide + 3 * squares + out, qkv, work=2 * squares + 2 * wide)
        if self._blockwise(run):
            weights = run.element * rows * _seen(self.positions) / self.positions
            block = run.element * rows / self.positions * min(BLOCK, self.positions) * self.positions
            return Op(qkv + turned + weights + out, qkv, work=2 * block + 3 * out)
        return Op(qkv + turned + out + FP32 * rows, qkv, work=qkv + turned + out / 2)

    def _core_kept(self, run: Run) -> float:
        """What a recomputed core keeps: its inputs, and its result for the next product."""
        wide = self.tokens(run) * run.element / self.tensor
        return wide * (self.hidden + 2 * self.kv) + self._turned(run) + wide * self.hidden

    def _turned(self, run: Run) -> float:
        """Rotated queries and keys, and the sines and cosines for both."""
        if not self.rotary:
            return 0.0
        angles = 4 * self.positions * self.hidden / self.heads * run.element
        return self.tokens(run) * (self.hidden + self.kv) * run.element / self.tensor + angles

    def _blockwise(self, run: Run) -> bool:
        """As `blockwise_attention.takes`."""
        return (
            run.device == "cpu"
            and run.element == 2
            and self.causal
            and self.kv == self.hidden
            and 1 < self.positions <= LONGEST
        )

    def _mlp_steps(self, run: Run) -> list[Op]:
        h, stream = self.hidden, self.stream(run)
        whole = self.tokens(run) * h * run.element
        gathered = whole if self.sequence else 0.0
        f = self.tokens(run) * self.ffn * run.element / self.tensor
        weight = h * self.ffn / self.tensor
        inner: tuple[Op, ...]
        if self.gated:
            inner = (
                Op(stream, whole, weight=2 * weight, work=gathered),
                Op(0.0, 2 * f),
                Op(2 * f, 2 * f, work=-f),
                Op(2 * f, 2 * f),
                Op(f, f, weight=weight, work=gathered),
            )
        elif self.sigmoid:  # x, its sigmoid, and the product; gradients of both factors
            inner = (
                Op(stream, whole, weight=weight, work=gathered),
                Op(0.0, f),
                Op(f, 2 * f, work=-f),
                Op(f, 2 * f),
                Op(f, f, weight=weight, work=gathered),
            )
        else:
            inner = (
                Op(stream, whole, weight=weight, work=gathered),
                Op(f, f),
                Op(f, f, weight=weight, work=gathered),
            )
        ops = [self.norm(run), *inner]
        if self.dropout:
            ops.append(self.mask(run))
        return ops


BLOCK, LONGEST = 128, 1024
"""Of `modeling.blockwise_attention`, which imports torch."""


def _seen(positions: int) -> float:
    """Weights that the blockwise attention of a sequence keeps, for one head."""
    return float(
        sum((min(low + BLOCK, positions) - low) * min(low + BLOCK, positions) for low in range(0, positions, BLOCK))
    )
