"""The shape of a GPT-like decoder, and what makes a shape or a layout of it impossible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modeling.errors import ModelError
from modeling.layout import Layout

VOCABULARY_MULTIPLE = 128
"""The vocabulary is padded to a multiple of this in every layout: padding by TP would change the model."""


@dataclass
class GPTConfig:
    """A decoder-only transformer: GPT-2/3 by default, Llama-like with rotary, rmsnorm, swiglu and query groups."""

    family: Literal["gpt"] = "gpt"
    """The model family, a folder in `modeling`."""
    num_layers: int = 12
    """Transformer layers."""
    hidden_size: int = 768
    """Width of the residual stream."""
    num_attention_heads: int = 12
    """Query heads; each is hidden_size / num_attention_heads wide."""
    num_query_groups: int | None = None
    """Key-value heads (grouped-query attention, Ainslie et al. 2023); null: one for each query head."""
    ffn_hidden_size: int | None = None
    """Width of the MLP; null: 4 x hidden_size."""
    sequence_length: int = 2048
    """Tokens predicted in a sample; the length of the position table."""
    vocab_size: int | None = None
    """Tokens in the vocabulary; null: as many as the shards' tokenizer has."""
    tie_embeddings: bool = True
    """One matrix for the input embedding and the output projection."""
    positions: Literal["learned", "rotary"] = "learned"
    """Learned absolute positions (GPT-2/3) or rotary ones (Su et al. 2021)."""
    rotary_base: int = 10000
    """Base of the rotary frequencies."""
    normalization: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Norm before attention, before the MLP, and at the end."""
    norm_epsilon: float = 1.0e-5
    """Added to the variance."""
    activation: Literal["gelu", "swiglu"] = "gelu"
    """MLP nonlinearity: GELU in the tanh form that GPT-2 uses, or SwiGLU (Shazeer 2020)."""
    biases: bool = True
    """Biases on the linear layers."""
    dropout: float = 0.0
    """Probability, on embeddings, residual branches and attention weights alike."""
    attention: Literal["dense", "alternating"] = "dense"
    """`alternating`: every second layer locally banded, as in GPT-3 (Brown et al. 2020, section 2.1)."""
    attention_band: int = 256
    """Positions that a banded layer sees. An assumption: the paper gives no width (Child et al. 2019: 128 and 256)."""
    initializer_std: float = 0.02
    """Standard deviation of initial weights; that of projections into the residual stream over sqrt(2 x layers)."""

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def query_groups(self) -> int:
        return self.num_query_groups or self.num_attention_heads

    @property
    def ffn_size(self) -> int:
        return self.ffn_hidden_size or 4 * self.hidden_size

    @property
    def vocabulary(self) -> int:
        """Tokens in the vocabulary; raises ModelError while it is not known."""
        if self.vocab_size is None:
            raise ModelError("model.vocab_size is not known yet: name the shards in data.mix, or give a number")
        return self.vocab_size

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    def multiplied_rows(self, tensor: int) -> int:
        """Rows of the vocabulary that the fullest of `tensor` ranks makes logits of: padding rows fill them up to whole
        16 bytes (`modeling.cross_entropy`).
        """
        return min(-(-self.vocabulary // 8) * 8, self.padded_vocab_size // tensor)

    def band_of_layer(self) -> tuple[int | None, ...]:
        """Width of each layer's attention band; None is dense. Layers 1, 3, … (from 0) are banded when alternating."""
        banded = self.attention == "alternating"
        return tuple(self.attention_band if banded and i % 2 else None for i in range(self.num_layers))

    def check(self) -> None:
        """Raise ModelError for a shape that cannot be built."""
        sizes = ("num_layers", "hidden_size", "num_attention_heads", "sequence_length", "attention_band", "rotary_base")
        for name in (*sizes, "num_query_groups", "ffn_hidden_size", "vocab_size"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ModelError(f"model.{name} is {size}; it must be at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise ModelError(
                f"model.hidden_size {self.hidden_size} is not divisible by model.num_attention_heads "
                f"{self.num_attention_heads}; {_near(self.hidden_size, self.num_attention_heads)} heads would fit"
            )
        if self.num_attention_heads % self.query_groups:
            raise ModelError(
                f"model.num_attention_heads {self.num_attention_heads} is not divisible by model.num_query_groups "
                f"{self.query_groups}; {_near(self.num_attention_heads, self.query_groups)} groups would fit"
            )
        if self.positions == "rotary" and self.head_size % 2:
            raise ModelError(f"rotary positions rotate pairs, but a head is {self.head_size} wide; make it even")
        if not 0.0 <= self.dropout < 1.0:
            raise ModelError(f"model.dropout is {self.dropout}; it must be in [0, 1)")

    def check_fresh(self) -> None:
        """Nothing of a decoder needs weights to begin with."""

    def check_layout(self, layout: Layout) -> None:
        """Raise ModelError for a layout that this model cannot be divided by."""
        tensor, stages = layout.tensor, layout.pipeline * layout.virtual_pipeline
        for name, size in (
            ("num_attention_heads", self.num_attention_heads),
            ("num_query_groups", self.query_groups),
            ("ffn_hidden_size", self.ffn_size),
        ):
            if size % tensor:
                raise ModelError(
                    f"model.{name} {size} is not divisible by parallel.tensor {tensor}; {_near(size, tensor)} would fit"
                )
        if self.padded_vocab_size % tensor:
            raise ModelError(
                f"the vocabulary padded to {self.padded_vocab_size} is not divisible by parallel.tensor {tensor}; "
                f"{_near(self.padded_vocab_size, tensor)} would fit"
            )
        if layout.sequence and self.sequence_length % tensor:
            raise ModelError(
                f"parallel.sequence divides model.sequence_length {self.sequence_length} by parallel.tensor {tensor}, "
                "which leaves a remainder; choose a length that is a multiple, or parallel.sequence false"
            )
        if self.num_layers % stages:
            raise ModelError(
                f"model.num_layers {self.num_layers} is not divisible by parallel.pipeline {layout.pipeline} x "
                f"parallel.virtual_pipeline {layout.virtual_pipeline} = {stages}; "
                f"{_near(self.num_layers, stages)} stages would fit"
            )


def _near(size: int, wanted: int) -> str:
    """The divisors of `size` next to `wanted`, for a message."""
    below = max((d for d in range(1, min(wanted, size) + 1) if size % d == 0), default=1)
    above = min((d for d in range(wanted, size + 1) if size % d == 0), default=below)
    return str(below) if above == below else f"{below} or {above}"
