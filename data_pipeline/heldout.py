"""Keeps held-out text honest: drops from it what occurs in the training text.

Licences, metadata and templates are nearly copies of one another, and exact deduplication does not see them. A held-out
document is dropped if more than a share of its 8-word shingles occurs anywhere in the training text. Memory is that
of the held-out shingles; the training text passes by once.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

SHINGLE_WORDS = 8
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def shingles(text: str) -> NDArray[np.uint64]:
    """64-bit hashes of the runs of 8 words of the lower-cased text; none for a text of fewer words."""
    words = text.lower().split()
    if len(words) < SHINGLE_WORDS:
        return np.zeros(0, dtype=np.uint64)
    hashes = np.fromiter((zlib.crc32(word.encode()) for word in words), dtype=np.uint64, count=len(words))
    hashes = (hashes + np.uint64(1)) * _MULTIPLIER
    hashes ^= hashes >> np.uint64(29)
    count = len(words) - SHINGLE_WORDS + 1
    out = np.zeros(count, dtype=np.uint64)
    for i in range(SHINGLE_WORDS):  # a polynomial in the multiplier: word order matters
        out = out * _MULTIPLIER + hashes[i : i + count]
    return out ^ (out >> np.uint64(32))


def overlaps(held_out: Sequence[str], training: Iterable[str]) -> NDArray[np.float64]:
    """For each held-out text, the share of its shingles that occurs in the training text.

    NaN for a text of fewer than 8 words, which is too short to tell.
    """
    own = [shingles(text) for text in held_out]
    known = np.unique(np.concatenate(own)) if own else np.zeros(0, dtype=np.uint64)
    found = np.zeros(len(known), dtype=bool)
    if len(known):
        for text in training:
            candidates = shingles(text)
            places = np.minimum(np.searchsorted(known, candidates), len(known) - 1)
            found[places[known[places] == candidates]] = True
    shares = [found[np.searchsorted(known, s)].mean() if len(s) else np.nan for s in own]
    return np.array(shares, dtype=np.float64)
