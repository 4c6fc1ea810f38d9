"""What a rank asks a stream for: a slice of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """A slice of a batch."""

    tokens: NDArray[np.int64]
    """[n, sequence_length + 1]: inputs are [:, :-1], targets [:, 1:]."""
    corpus: NDArray[np.int64]
    """[n]: index into the stream's `corpora` (the validation set's `names`)."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a model reads, by name."""
        return {"tokens": self.tokens}


@dataclass(frozen=True)
class PairBatch:
    """A slice of a batch of pictures with captions."""

    images: NDArray[np.uint8]
    """[n, 3, size, size]: red, green, blue."""
    tokens: NDArray[np.int64]
    """[n, context_length]: sot, the caption, eot, zeros."""
    corpus: NDArray[np.int64]
    """[n]: index into the stream's `corpora` (the validation set's `names`)."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a model reads, by name."""
        return {"images": self.images, "tokens": self.tokens}


def slice_of(start: int, size: int, index: int, count: int) -> NDArray[np.int64]:
    """Sample numbers of slice `index` of `count` contiguous slices of start ... start + size."""
    if not 0 <= index < count:
        raise ValueError(f"slice {index} of {count}")
    return np.arange(start + size * index // count, start + size * (index + 1) // count, dtype=np.int64)
