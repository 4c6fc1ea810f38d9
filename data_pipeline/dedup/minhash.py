"""Shingles → MinHash signature → one 64-bit key a band, equal for likely near-duplicates.

Broder 1997: the least values of two sets under a random hash function are equal with a probability that is their
Jaccard similarity. Locality-sensitive hashing by bands of several such minima (Leskovec, Rajaraman, Ullman: Mining of
Massive Datasets, section 3.4): a pair at similarity s has an equal key in at least one band with probability
1 - (1 - s^rows)^bands.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dedup.shingles import Shingles
from data_pipeline.kernels import compiled

#: The key of a document that matches nothing.
NO_KEY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_LEAST = np.uint32(0xFFFF_FFFF)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_1 = np.uint64(1)


def hash_functions(seed: int, count: int) -> NDArray[np.uint32]:
    """Factors (odd) and addends of `count` functions x → factor * x + addend modulo 2^32, [2, count].

    They are drawn independently, so that the minima are independent given the sets; x is a well-mixed hash already.
    """
    numbers = np.frombuffer(hashlib.shake_128(b"minhash %d" % seed).digest(8 * count), dtype="<u4")
    return numbers.astype(np.uint32).reshape(2, count) | np.array([[1], [0]], dtype=np.uint32)


def signatures(shingles: Shingles, functions: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The least value of each function over each document's shingles, [documents, functions]; the share of equal
    values of two documents is an unbiased estimate of their Jaccard similarity."""
    out = np.full((len(shingles.starts) - 1, functions.shape[1]), _LEAST, dtype=np.uint32)
    compiled(_signatures)(shingles.hashes, shingles.starts, functions[0].copy(), functions[1].copy(), out)
    return out


def band_keys(shingles: Shingles, functions: NDArray[np.uint32], bands: int) -> NDArray[np.uint64]:
    """A key for each band of each document, [bands, documents]; NO_KEY for a document without shingles."""
    keys = np.empty((bands, len(shingles.starts) - 1), dtype=np.uint64)
    if bands:
        compiled(_band_keys)(signatures(shingles, functions), keys)
    keys[:, np.diff(shingles.starts) == 0] = NO_KEY
    return keys


def _signatures(hashes: Any, starts: Any, factors: Any, addends: Any, out: Any) -> None:
    for document in range(len(starts) - 1):
        least = out[document]
        i, end = np.uint64(starts[document]), np.uint64(starts[document + 1])
        # Four shingles at a time, so that factors, addends and minima are loaded and stored a fourth as often.
        while i < end:
            last = end - _1
            x_0, x_1 = np.uint32(hashes[i]), np.uint32(hashes[min(i + _1, last)])
            x_2, x_3 = np.uint32(hashes[min(i + np.uint64(2), last)]), np.uint32(hashes[min(i + np.uint64(3), last)])
            for k in range(len(factors)):
                factor, addend = factors[k], addends[k]
                low = min(np.uint32(x_0 * factor + addend), np.uint32(x_1 * factor + addend))
                high = min(np.uint32(x_2 * factor + addend), np.uint32(x_3 * factor + addend))
                least[k] = min(least[k], min(low, high))
            i += np.uint64(4)


def _band_keys(minima: Any, keys: Any) -> None:
    documents, functions = minima.shape
    bands = len(keys)
    rows = functions // bands
    for document in range(documents):
        for band in range(bands):
            key = np.uint64(band)
            for row in range(rows):
                key = (key ^ np.uint64(minima[document, band * rows + row])) * _MIX_1
                key = (key ^ (key >> np.uint64(31))) * _MIX_2
            key ^= key >> np.uint64(30)
            keys[band, document] = min(key, NO_KEY - _1)
