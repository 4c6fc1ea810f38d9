"""What a transformer layer keeps from forward to backward, step by step as autograd sees it. Without torch.

It follows `modeling.transformer.layer_spec` and the modules that this names; a change of what those save belongs here
too, and tests/distributed/test_memory.py says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from modeling.memory import FP32, Block, Op, Run, Segment

RANDOM_STATE = 5056
"""Bytes of a CPU generator's state; a recomputed segment on a CPU keeps `RANDOM_STATES` of them."""
RANDOM_STATES = 4


BLOCK, LONGEST = 128, 1024
"""Of `modeling.blockwise_attention`, which imports torch."""


@dataclass(frozen=True)
class Transformer:
    """A pre-norm layer's sizes on one rank, as `modeling.transformer.layer_spec` builds it.

    On a CPU other kernels keep other things than on a GPU: see `norm`, `mask` and `_core`. A compiled layer keeps what
    its products give and are given, as eager mode does, and computes again what only steps between them need: torch's
    partitioner does not recompute what a product reads in backward.
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
            width = run.element if run.device == "cpu" and not run.compiled else FP32
            return Op(stream + 2 * tokens * width, stream, joins=True)
        if run.device == "cuda" or run.compiled:
            return Op(stream + FP32 * tokens, stream, joins=True)
        wide = FP32 * stream / run.element
        return Op(2 * wide + FP32 * tokens, stream, work=3 * wide, joins=True)

    def _attention_steps(self, run: Run) -> list[Op]:
        h = self.hidden
        wide = self.tokens(run) * run.element / self.tensor
        qkv = wide * (h + 2 * self.kv)
        whole = self.tokens(run) * h * run.element  # what sequence parallelism gathers
        gathered = whole if self.sequence else 0.0
        ops = [
            self.norm(run),
            self._first_product(run, h * (h + 2 * self.kv) / self.tensor),
            self._core(run, qkv, wide * h),
            Op(0.0, wide * h, weight=h * h / self.tensor, work=gathered),
        ]
        if self.dropout:
            ops.append(self.mask(run))
        return ops

    def _first_product(self, run: Run, weight: float) -> Op:
        """A column-parallel product. It keeps its part of the norm's result."""
        stream = self.stream(run)
        whole = self.tokens(run) * self.hidden * run.element
        gathered = whole if self.sequence else 0.0
        return Op(stream, whole, weight=weight, work=gathered)

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
        if self.blockwise(run):
            weights = run.element * rows * _seen(self.positions) / self.positions
            block = run.element * rows / self.positions * min(BLOCK, self.positions) * self.positions
            return Op(qkv + self._angles(run) + weights + out, qkv, work=2 * block + 3 * out)
        return Op(qkv + turned + out + FP32 * rows, qkv, work=qkv + turned + out / 2)

    def _core_kept(self, run: Run) -> float:
        """What a recomputed core keeps: its inputs, and its result for the next product."""
        wide = self.tokens(run) * run.element / self.tensor
        return wide * (self.hidden + 2 * self.kv) + self._turned(run) + wide * self.hidden

    def _turned(self, run: Run) -> float:
        """Rotated queries and keys."""
        if not self.rotary:
            return 0.0
        return self.tokens(run) * (self.hidden + self.kv) * run.element / self.tensor + self._angles(run)

    def _angles(self, run: Run) -> float:
        """Sines and cosines, for queries and for keys."""
        return 4 * self.positions * self.hidden / self.heads * run.element if self.rotary else 0.0

    def blockwise(self, run: Run) -> bool:
        """As `blockwise_attention.takes`."""
        return (
            run.device == "cpu"
            and run.element == 2
            and self.causal
            and self.kv == self.hidden
            and 1 < self.positions <= LONGEST
        )

    def _mlp_steps(self, run: Run) -> list[Op]:
        f = self.tokens(run) * self.ffn * run.element / self.tensor
        weight = self.hidden * self.ffn / self.tensor
        gathered = self.tokens(run) * self.hidden * run.element if self.sequence else 0.0
        wide = 2 if self.gated else 1
        inner = [self._first_product(run, wide * weight)]
        if run.compiled:  # what the products gave and are given
            inner += [Op(wide * f, wide * f), Op(f, f, weight=weight, work=gathered)]
        elif self.gated:  # gate and value, silu of one, a copy of the other (Megatron Core adds 0 to it), their product
            inner += [
                Op(0.0, 2 * f),
                Op(2 * f, 2 * f, work=-f),
                Op(2 * f, 2 * f),
                Op(f, f, weight=weight, work=gathered),
            ]
        elif self.sigmoid:  # x, its sigmoid, and the product; gradients of both factors
            inner += [Op(0.0, f), Op(f, 2 * f, work=-f), Op(f, 2 * f), Op(f, f, weight=weight, work=gathered)]
        else:
            inner += [Op(f, f), Op(f, f, weight=weight, work=gathered)]
        ops = [self.norm(run), *inner]
        if self.dropout:
            ops.append(self.mask(run))
        return ops


def _seen(positions: int) -> float:
    """Weights that the blockwise attention of a sequence keeps, for one head."""
    return float(
        sum((min(low + BLOCK, positions) - low) * min(low + BLOCK, positions) for low in range(0, positions, BLOCK))
    )
