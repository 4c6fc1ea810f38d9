"""Which corpus sample g of the stream comes from, and how many of that corpus came before it. Closed form, no state.

A chain of Beatty sequences: among the first g samples the first corpus gets floor((g a + phase) / 2^31), a its weight
in units of 2^-31; what is left over is numbered afresh and shared out in the same way among the remaining corpora. In
any window, wherever it starts and however long it is, a corpus's count differs from weight * length by less than its
place in the mix (plus rounding of the weights, one part in 4e9), where random assignment is off by the square root of
the length. So a batch has nearly the exact mixture, and a rank can ask for any g at once. The seed sets the phases.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import BadConfig
from data_pipeline.permutation import derive_key

_BITS = 31
_UNIT = 1 << _BITS


class Mix:
    """weights: of any sum, at least one positive. Raises BadConfig for others."""

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        if not weights or not all(np.isfinite(w) and w > 0 for w in weights):
            raise BadConfig(f"data.mix needs corpora with positive weights, not {list(weights)}")
        total = float(np.sum(weights))
        self.weights = [w / total for w in weights]
        left = np.cumsum(np.array(weights, dtype=np.float64)[::-1])[::-1]
        self._shares = [round(float(w / rest) * _UNIT) for w, rest in zip(weights, left, strict=True)]
        self._shares[-1] = _UNIT  # the last takes what is left over
        self._phases = [derive_key(seed, "mix", level) % _UNIT for level in range(len(weights))]

    def assign(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For sample numbers [n]: the corpus of each [n], and its number among that corpus's samples [n]."""
        corpus = np.full(len(samples), len(self._shares) - 1, dtype=np.int64)
        number = np.empty_like(samples)
        open_ = np.arange(len(samples))
        rest = samples
        for level, (share, phase) in enumerate(zip(self._shares, self._phases, strict=True)):
            before = _count(rest, share, phase)
            taken = _count(rest + 1, share, phase) > before
            corpus[open_[taken]] = level
            number[open_[taken]] = before[taken]
            rest = (rest - before)[~taken]
            open_ = open_[~taken]
        return corpus, number

    def counts(self, samples: int) -> list[int]:
        """How many of the first `samples` samples come from each corpus."""
        counts, rest = [], samples
        for share, phase in zip(self._shares, self._phases, strict=True):
            counts.append((rest * share + phase) >> _BITS)
            rest -= counts[-1]
        return counts


def _count(g: NDArray[np.int64], share: int, phase: int) -> NDArray[np.int64]:
    """floor((g * share + phase) / 2^31) without overflowing 64 bits."""
    result: NDArray[np.int64] = (g >> _BITS) * share + (((g & (_UNIT - 1)) * share + phase) >> _BITS)
    return result
