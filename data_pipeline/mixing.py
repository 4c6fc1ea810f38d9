"""Which corpus sample g of the stream comes from, and how many of that corpus came before it. Closed form, no state.

A chain of Beatty sequences: among the first g samples the first corpus gets floor((g a + phase) / 2^31), a its weight
in units of 2^-31; what is left over is numbered afresh and shared out in the same way among the remaining corpora. In
any window, wherever it starts and however long it is, a corpus's count differs from weight * length by less than its
place in the mix (plus rounding of the weights, one part in 4e9), where random assignment is off by the square root of
the length. So a batch has nearly the exact mixture, and a rank can ask for any g at once. The seed sets the phases.

A curriculum is such mixes one after the other: in each segment a corpus's numbers go on from where they were.
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
    """weights: of any sum, none negative, at least one positive. Raises BadConfig for others."""

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        if not all(np.isfinite(w) and w >= 0 for w in weights) or not any(weights):
            raise BadConfig(f"data.mix needs corpora with positive weights, not {list(weights)}")
        total = float(np.sum(weights))
        self.weights = [w / total for w in weights]
        left = np.cumsum(np.array(weights, dtype=np.float64)[::-1])[::-1]
        self._shares = [round(float(w / rest) * _UNIT) if w else 0 for w, rest in zip(weights, left, strict=True)]
        self._shares[max(i for i, w in enumerate(weights) if w)] = _UNIT  # the last takes what is left over
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


class Curriculum:
    """Mixes one after the other, from sample `first` on, at which the corpora have the numbers `numbers` (default 0).

    segments: (first sample, weights), ascending; the first of them begins at or before `first`, and those that are over
    by then do not count.
    """

    def __init__(
        self,
        segments: Sequence[tuple[int, Sequence[float]]],
        seed: int,
        first: int = 0,
        numbers: Sequence[int] | None = None,
    ) -> None:
        begun = max(i for i, (start, _) in enumerate(segments) if start <= first)
        self.mixes = [Mix(weights, seed) for _, weights in segments[begun:]]
        self.starts = [first, *(start for start, _ in segments[begun + 1 :])]
        count = len(self.mixes[0].weights)
        bases = [[0] * count if numbers is None else list(numbers)]
        for mix, start, end in zip(self.mixes, self.starts, self.starts[1:], strict=False):
            bases.append([base + n for base, n in zip(bases[-1], mix.counts(end - start), strict=True)])
        self._bases = np.array(bases, dtype=np.int64)

    def assign(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For sample numbers [n], none before `first`: corpus [n] and number among that corpus's samples [n]."""
        segment = np.searchsorted(self.starts, samples, side="right") - 1
        lowest, highest = (int(segment.min()), int(segment.max())) if len(samples) else (0, 0)
        if lowest == highest:
            return self._assign_in(lowest, samples)
        corpus, number = np.empty_like(samples), np.empty_like(samples)
        for k in range(lowest, highest + 1):
            mine = segment == k
            corpus[mine], number[mine] = self._assign_in(k, samples[mine])
        return corpus, number

    def counts(self, samples: int) -> list[int]:
        """The number at which each corpus is after sample `samples` - 1: what comes next of it."""
        k = int(np.searchsorted(self.starts, samples, side="right")) - 1
        within = self.mixes[k].counts(samples - self.starts[k])
        return [int(base) + n for base, n in zip(self._bases[k].tolist(), within, strict=True)]

    def _assign_in(self, k: int, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        start, bases = self.starts[k], self._bases[k]
        corpus, number = self.mixes[k].assign(samples - start if start else samples)
        return corpus, number + bases[corpus] if bases.any() else number


def _count(g: NDArray[np.int64], share: int, phase: int) -> NDArray[np.int64]:
    """floor((g * share + phase) / 2^31) without overflowing 64 bits."""
    result: NDArray[np.int64] = (g >> _BITS) * share + (((g & (_UNIT - 1)) * share + phase) >> _BITS)
    return result
