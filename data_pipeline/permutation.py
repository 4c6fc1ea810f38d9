"""A keyed permutation of 0 ... n - 1 that is computed for single elements: no array, any n up to 2^62.

A Feistel network on the smallest even split of the bits that n needs, with cycle walking for what falls outside
(Black and Rogaway 2002, "Ciphers with arbitrary finite domains"): fewer than two rounds of walking on average. Its
round function is a 64-bit finaliser (Steele et al. 2014, SplitMix): good shuffling, no cryptography.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6  # even, so that the halves come back to their sides
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def derive_key(seed: int, *parts: str | int) -> int:
    """A 63-bit key of the seed and a path of names and numbers."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def permute(values: NDArray[np.int64], keys: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The image of each value [k] in [0, n) under the permutation of its own key [k]."""
    if n == 1:
        return np.zeros_like(values)
    bits = (n - 1).bit_length()
    low = (bits + 1) // 2
    out = _feistel(values.astype(np.uint64), keys.astype(np.uint64), bits - low, low)
    outside = np.flatnonzero(out >= n)
    while len(outside):
        out[outside] = _feistel(out[outside], keys[outside].astype(np.uint64), bits - low, low)
        outside = outside[out[outside] >= n]
    return out.astype(np.int64)


def _feistel(x: NDArray[np.uint64], keys: NDArray[np.uint64], high: int, low: int) -> NDArray[np.uint64]:
    left, right = x >> np.uint64(low), x & np.uint64((1 << low) - 1)
    left_bits, right_bits = high, low
    for number in range(1, _ROUNDS + 1):
        mixed = finalise(right + keys + np.uint64(number * _GOLDEN & _MASK))
        left, right = right, left ^ (mixed & np.uint64((1 << left_bits) - 1))
        left_bits, right_bits = right_bits, left_bits
    return (left << np.uint64(low)) | right


def finalise(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix's finaliser of each number: a bijection whose every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
