"""What one rank holds of a model and hands to its peers, by formula: without torch, process groups or memory.

`trestle train --dry-run` is made of it. Numbers are elements, not bytes: their width is the precision's business. The
parameters are exact (tests/modeling/test_footprint.py compares them with the real modules'). What autograd keeps is in
`modeling.memory`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from modeling.layout import Layout


class LocalParameter(NamedTuple):
    """One parameter as a rank holds it."""

    name: str
    """As in `named_parameters()`, the chunk's number left out."""
    numel: int
    """Elements on this rank, padding rows included."""
    decay: bool
    """Whether weight decay applies: the optimizer keeps two groups."""
    trainable: bool = True


@dataclass(frozen=True)
class Footprint:
    """One rank of one pipeline stage. What depends on the batch is per sample of it."""

    parameters: tuple[LocalParameter, ...]
    summed: float
    """Elements that go through tensor-parallel sums, forward and backward; two halves of one count as one (a gather and
    a scattering sum under sequence parallelism).
    """
    boundary: float = 0.0
    """Elements that a sample hands over where one chunk of layers ends and the next begins."""
    partial: int = 0
    """Elements whose gradient each tensor-parallel rank has a part of: norms and biases under sequence parallelism."""
    tied: int = 0
    """Elements of a gradient that the first and the last stage sum: a tied embedding's."""

    @property
    def numel(self) -> int:
        """Parameters on this rank."""
        return sum(parameter.numel for parameter in self.parameters)


@dataclass(frozen=True)
class Layer:
    """A transformer layer's sizes. `kv` is the width of all keys (and of all values)."""

    hidden: int
    kv: int
    ffn: int
    gated: bool = False
    biases: bool = True
    norm_bias: bool = True

    def parameters(self, prefix: str, tensor: int, trainable: bool = True) -> Iterator[LocalParameter]:
        """What one of `tensor` ranks holds: matrices divided, norms and the biases after a sum whole."""
        h, qkv, fc1 = self.hidden, self.hidden + 2 * self.kv, self.ffn * (2 if self.gated else 1)
        for name, numel in (
            ("self_attention.linear_proj", h * h),
            ("self_attention.linear_qkv", h * qkv),
            ("mlp.linear_fc1", h * fc1),
            ("mlp.linear_fc2", h * self.ffn),
        ):
            yield LocalParameter(f"{prefix}{name}.weight", numel // tensor, True, trainable)
        if self.biases:
            for name, numel in (("self_attention.linear_qkv", qkv // tensor), ("mlp.linear_fc1", fc1 // tensor)):
                yield LocalParameter(f"{prefix}{name}.bias", numel, False, trainable)
            for name in ("self_attention.linear_proj", "mlp.linear_fc2"):
                yield LocalParameter(f"{prefix}{name}.bias", h, False, trainable)
        for name in ("input_layernorm", "pre_mlp_layernorm"):
            yield LocalParameter(f"{prefix}{name}.weight", h, False, trainable)
            if self.norm_bias:
                yield LocalParameter(f"{prefix}{name}.bias", h, False, trainable)

    @property
    def partial(self) -> int:
        """Elements that sequence parallelism leaves partial gradients of: both norms, both biases after a sum."""
        return self.hidden * (2 * (2 if self.norm_bias else 1) + (2 if self.biases else 0))

    def summed(self, positions: int, layers: int, layout: Layout, recompute: str) -> float:
        """Elements that go through sums over the tensor-parallel ranks: twice forward (after attention and MLP), twice
        backward (before them); sequence parallelism gathers two inputs again in backward (one more), and what is
        computed again sums again.
        """
        if layout.tensor == 1:
            return 0.0
        again = {"none": 0, "selective": 1, "full": 2}[recompute]
        return layers * positions * self.hidden * (4 + (1 if layout.sequence else 0) + again)
