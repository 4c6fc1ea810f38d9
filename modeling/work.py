"""What a rank computes in one micro-batch, by formula: matrix products with their sizes, attention, and memory traffic.

FLOPs are counted and times are estimated from the same description: tests/modeling/test_work.py compares its products
with those that torch counts in real models. Everything here is without torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Product:
    """`[m, k] x [k, n]`, `count` times in the forward pass of a micro-batch on one rank: 2 m k n operations each."""

    name: str
    m: float
    n: float
    k: float
    count: float = 1
    gradients: int = 2
    """Products as large in backward: of the input and of the weight; 1 where nothing is before it, 0 where locked."""
    again: bool = False
    """Whether recomputation does it once more."""

    @property
    def flops(self) -> float:
        """Of the forward pass."""
        return 2.0 * self.m * self.n * self.k * self.count


@dataclass(frozen=True)
class Attention:
    """softmax(Q K^T / sqrt(d)) V of `heads` pairs of sequences, `count` times in a forward pass."""

    heads: float
    """Over all samples of the micro-batch."""
    queries: int
    keys: int
    size: int
    """Width of a head."""
    count: float = 1
    causal: bool = False
    band: int | None = None
    """Keys that a query sees at most; None: all (before it, if causal)."""
    gradients: bool = True
    again: bool = False
    documents: bool = False
    """Whether a query sees its own document alone."""
    grouped: bool = False
    """Whether several heads of queries share one of keys."""

    def pairs(self, *, causal: bool) -> float:
        """Pairs of a query with a key. Full unless `causal`: then those that the causal mask leaves."""
        width = min(self.band or self.keys, self.keys)
        if not (causal and self.causal):
            return float(self.queries * width)
        # Query i sees min(i + 1, width) keys.
        return self.queries * width - width * (width - 1) / 2

    @property
    def masked(self) -> bool:
        """Whether the kernel is handed a mask, as `modeling.attention` does for bands and documents: then it computes
        every pair and hides some of them afterwards, the causal half too.
        """
        return self.documents or (self.band is not None and self.band < self.keys)

    def tiles(self, tile: int = 128) -> float:
        """Pairs that a kernel works on which takes queries and keys `tile` at a time, and leaves tiles out that lie
        above the diagonal, unless it is handed a mask.
        """
        rows, columns = -(-self.queries // tile), -(-self.keys // tile)
        if self.masked or not self.causal:
            return float(rows * columns * tile * tile)
        return tile * tile * (rows * columns - columns * (columns - 1) / 2)

    def flops(self, *, causal: bool) -> float:
        """Two products of the forward pass; backward has four (what flash kernels compute again left out)."""
        return self._flops(self.pairs(causal=causal))

    @property
    def run(self) -> float:
        """The same of the pairs that are computed: those before a query if causal, and all under a mask."""
        return self._flops(self.queries * self.keys if self.masked else self.pairs(causal=True))

    def _flops(self, pairs: float) -> float:
        return 4.0 * self.size * self.heads * self.count * pairs


@dataclass(frozen=True)
class Traffic:
    """Work that memory bounds: elements of the activations' dtype that are read and written, and kernels started."""

    name: str
    forward: float
    backward: float
    kernels: float
    """In the forward pass; backward starts about twice as many."""
    again: bool = False
    compiled: float | None = None
    """Forward, where a compiler makes one kernel of it; None: as other traffic."""


@dataclass(frozen=True)
class Work:
    """One micro-batch on one rank of one pipeline stage."""

    products: tuple[Product, ...]
    attention: tuple[Attention, ...]
    traffic: tuple[Traffic, ...]

    @property
    def forward(self) -> float:
        """Operations of the forward pass, attention left out."""
        return sum(product.flops for product in self.products)

    @property
    def training(self) -> float:
        """Operations of forward and backward, attention and recomputation left out."""
        return sum(product.flops * (1 + product.gradients) for product in self.products)

    @property
    def recomputed(self) -> float:
        """Operations that recomputation adds, attention left out."""
        return sum(product.flops for product in self.products if product.again)

    def attention_training(self, *, causal: bool) -> float:
        return sum(one.flops(causal=causal) * (3 if one.gradients else 1) for one in self.attention)

    def attention_recomputed(self, *, causal: bool) -> float:
        return sum(one.flops(causal=causal) for one in self.attention if one.again)

    @property
    def attention_run(self) -> float:
        """Of forward, backward and recomputation: the pairs that kernels compute."""
        return sum(one.run * ((3 if one.gradients else 1) + one.again) for one in self.attention)

    @property
    def attention_run_forward(self) -> float:
        return sum(one.run for one in self.attention)

    def by_document(self) -> Work:
        """The same where every sample is several documents that do not see one another."""
        return replace(self, attention=tuple(replace(one, documents=True) for one in self.attention))


_PASSES = {"gelu": (2.0, 4.0), "quickgelu": (7.0, 15.0), "swiglu": (5.0, 13.0)}
"""Times that an MLP's inner width is moved by the nonlinearity, forward and backward, and backward by the bias's sum;
x sigmoid(1.702 x) is three kernels, and SwiGLU two over halves.
"""


@dataclass(frozen=True)
class LayerShape:
    """A transformer layer on one tensor-parallel rank."""

    hidden: int
    heads: int
    kv: int
    """Width of all keys."""
    ffn: int
    activation: str = "gelu"

    def work(
        self,
        *,
        prefix: str,
        layers: float,
        samples: int,
        positions: int,
        tensor: int,
        sequence: bool,
        recompute: str,
        causal: bool,
        bands: Iterable[tuple[int | None, float]] = (),
        locked: bool = False,
    ) -> Work:
        """`layers` such layers. `bands`: (keys that a query sees, layers); none: all of them see everything."""
        h, f, tokens = self.hidden, self.ffn, float(samples * positions)
        gradients = 0 if locked else 2
        # "attention" is what Korthikanti et al. 2022 call selective; ours computes the MLP again as well.
        recompute = "none" if locked else recompute
        all_again, mlp_again = recompute == "full", recompute in ("selective", "full")

        def product(name: str, m: float, n: float, k: float, again: bool) -> Product:
            return Product(f"{prefix}{name}", m, n, k, layers, gradients, again)

        products = (
            product("qkv", tokens, (h + 2 * self.kv) / tensor, h, all_again),
            product("projection", tokens, h, h / tensor, all_again),
            product("fc1", tokens, f * (2 if self.activation == "swiglu" else 1) / tensor, h, mlp_again),
            product("fc2", tokens, h, f / tensor, mlp_again),
        )
        attention = tuple(
            Attention(
                samples * self.heads / tensor,
                positions,
                positions,
                h // self.heads,
                count,
                causal,
                band,
                not locked,
                recompute != "none",
                grouped=self.kv != self.hidden,
            )
            for band, count in (tuple(bands) or ((None, layers),))
        )
        return Work(products, attention, self._traffic(prefix, layers, tokens, tensor, sequence, recompute, locked))

    def _traffic(
        self, prefix: str, layers: float, tokens: float, tensor: int, sequence: bool, recompute: str, locked: bool
    ) -> tuple[Traffic, ...]:
        """Passes over activations, kernel by kernel as eager torch runs them.

        Forward, a position: each of two norms reads and writes h, and each of two branches is added to the residual
        (3 h); biases are added by the products; attention's result is copied (2 h). Backward: a norm moves 3 h, a
        residual adds two gradients (3 h) and sums a bias's (h); attention's gradients are copied and put together, and
        the bias's summed.
        """
        h, qkv = self.hidden, self.hidden + 2 * self.kv
        whole = tokens * h / (tensor if sequence else 1)
        inner, inner_back = _PASSES[self.activation]
        back = 0.0 if locked else 1.0
        again = recompute == "full"
        part = layers * tokens / tensor
        return (
            Traffic(f"{prefix}norms and residuals", layers * 10 * whole, back * layers * 14 * whole, 4 * layers, again),
            Traffic(f"{prefix}attention's copies", part * 2 * h, back * part * (2 * h + 3 * qkv), 2 * layers, again),
            Traffic(
                f"{prefix}nonlinearity",
                part * inner * self.ffn,
                back * part * inner_back * self.ffn,
                layers * inner / 2,
                recompute in ("selective", "full"),
            ),
        )


def together(parts: Iterable[Work]) -> Work:
    """Several parts of one rank's model."""
    works = list(parts)
    return Work(
        products=tuple(product for work in works for product in work.products),
        attention=tuple(one for work in works for one in work.attention),
        traffic=tuple(one for work in works for one in work.traffic),
    )
