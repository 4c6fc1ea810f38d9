"""The order in which a corpus shows its samples: each once an epoch, anew every epoch. Closed form, no arrays.

full: one permutation of all samples. windowed: a permutation of the members (about 1 MiB of samples each; the set's
short last member stays last), and one of the samples within each window of so many members in that order. A reader then
touches one window's members at a time, so that each is fetched once; neighbours are as unrelated as in a shuffle buffer
of a window's size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.permutation import permute

#: Makes the keys of successive epochs, of successive windows, and of members and samples unrelated.
_EPOCH_STRIDE = np.int64(0x1E3779B97F4A7C15)
_WINDOW_STRIDE = np.int64(0x2545F4914F6CDD1D)
_MEMBERS = np.int64(0x5851F42D4C957F2D)


@dataclass(frozen=True)
class Shuffle:
    """window: members in a window; None for the full shuffle."""

    window: int | None = None

    def positions(self, numbers: NDArray[np.int64], key: int, samples: int, rows: int) -> NDArray[np.int64]:
        """Positions in the shard set of a corpus's samples `numbers` [n], which count on over the epochs.

        key: of the corpus; samples: in the shard set; rows: samples in a member, but the last.
        """
        epoch, within = np.divmod(numbers, samples)
        keys: NDArray[np.int64] = np.int64(key) + epoch * _EPOCH_STRIDE
        if self.window is None:
            return permute(within, keys, samples)
        return _windowed(within, keys, samples, rows, self.window)

    def to_json(self) -> dict[str, Any]:
        """For the fingerprint."""
        return {"mode": "full"} if self.window is None else {"mode": "windowed", "window": self.window}


def _windowed(
    within: NDArray[np.int64], keys: NDArray[np.int64], samples: int, rows: int, window: int
) -> NDArray[np.int64]:
    size = rows * window
    number, offset = np.divmod(within, size)
    window_keys = keys + (number.astype(np.int64) + 1) * _WINDOW_STRIDE
    last = samples // size  # the window that is cut short, if there is one
    whole = number < last
    if whole.all():
        order = permute(offset, window_keys, size)
    else:
        order = np.empty_like(offset)
        order[whole] = permute(offset[whole], window_keys[whole], size)
        order[~whole] = permute(offset[~whole], window_keys[~whole], samples - last * size)
    slot, row = np.divmod(number * size + order, rows)
    full_members = samples // rows
    member = slot.copy()
    shuffled = slot < full_members
    member[shuffled] = permute(slot[shuffled], keys[shuffled] ^ _MEMBERS, full_members)
    return member * rows + row
