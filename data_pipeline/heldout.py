"""Keeps held-out text honest: drops from it what occurs in the training text.

Licences, metadata and templates are nearly copies of one another, and exact deduplication does not see them. A held-out
document is dropped if more than a share of its 8-word shingles occurs anywhere in the training text. Memory is that
of the held-out shingles; the training text passes by once, part by part.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

SHINGLE_WORDS = 8
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def text_key(text: str) -> bytes:
    """16-byte hash of the text without regard to case and whitespace."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()


def is_held_out(text: str, fraction: float) -> bool:
    """Whether the text belongs to the held-out part: a function of its hash, so equal texts are on one side."""
    return int.from_bytes(text_key(text)[:8], "big") < int(fraction * 2**64)


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


def known_shingles(held_out: Iterable[str]) -> NDArray[np.uint64]:
    """The shingles of all held-out texts together, sorted, each once."""
    own = [shingles(text) for text in held_out]
    return np.unique(np.concatenate(own)) if own else np.zeros(0, dtype=np.uint64)


def found_shingles(known: NDArray[np.uint64], training: Iterable[str]) -> NDArray[np.bool_]:
    """Which of the `known` ones occur in some of the training texts."""
    found = np.zeros(len(known), dtype=bool)
    if len(known):
        for text in training:
            candidates = shingles(text)
            places = np.minimum(np.searchsorted(known, candidates), len(known) - 1)
            found[places[known[places] == candidates]] = True
    return found


def overlap(text: str, known: NDArray[np.uint64], found: NDArray[np.bool_]) -> float:
    """The share of a held-out text's shingles that was found; NaN for fewer than 8 words: too short to tell."""
    own = shingles(text)
    return float(found[np.searchsorted(known, own)].mean()) if len(own) else float("nan")
