"""Exact copies: documents whose texts differ in letter case and whitespace alone. The one of smallest id is kept.

Ids number the documents of all parts, in the order of the parts: document i of part p has the id firsts[p] + i. They
take 32 bits here. Copies are found by 128-bit hashes, a range of hashes at a time, so that memory is bounded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dedup.minhash import NO_KEY
from data_pipeline.dedup.shingles import Shingles

#: Memory that `find_copies` and `candidates.find_pairs` take for each document of their range, at most.
BYTES_PER_DOCUMENT = 96


def text_keys(shingles: Shingles) -> NDArray[np.uint64]:
    """16-byte BLAKE2 hash of each normalised text, [documents, 2]: `heldout.text_key`."""
    text, starts = memoryview(shingles.text), shingles.text_starts.tolist()  # type: ignore[arg-type]
    hash_bytes, size = hashlib.blake2b, 16
    keys = [hash_bytes(text[a:b], digest_size=size).digest() for a, b in pairwise(starts)]
    return np.frombuffer(b"".join(keys), dtype=">u8").astype(np.uint64).reshape(-1, 2)


def find_copies(folder: Path, *, signatures: Sequence[str], firsts: Sequence[int], low: int, high: int) -> None:
    """Task: the copies among all documents whose hashes begin with low to high, both included.

    Writes copies.npy, uint32 [2, copies]: ids of the dropped, ascending, and of those kept instead; and sizes.json, how
    many groups of equal documents there are of each size.
    """
    keys, ids = _range_of_keys([Path(signature) / "keys.npy" for signature in signatures], firsts, low, high)
    again = repeated(keys[:, 0])
    keys, ids = keys[again], ids[again]
    order = np.lexsort((ids, keys[:, 1], keys[:, 0]))
    keys, ids = keys[order], ids[order]
    starts = np.flatnonzero(np.concatenate([[True], (keys[1:] != keys[:-1]).any(axis=1)])) if len(ids) else ids[:0]
    sizes = np.diff(starts, append=len(ids))
    kept = np.repeat(ids[starts], sizes)
    dropped = kept != ids
    copies = np.stack([ids[dropped], kept[dropped]])
    np.save(folder / "copies.npy", copies[:, np.argsort(copies[0])])
    (folder / "sizes.json").write_text(json.dumps(count_sizes(sizes)))


def mark_copies(folder: Path, *, copies: Sequence[str], first: int, documents: int) -> None:
    """Task: which documents of a part are copies.

    Writes kept.npy, uint32 [documents]: for each the id of the one that is kept, which is its own if it is no copy.
    """
    kept = np.arange(first, first + documents, dtype=np.uint32)
    for path in copies:
        pairs = np.load(Path(path) / "copies.npy", mmap_mode="r")
        low, high = np.searchsorted(pairs[0], [first, first + documents])
        kept[pairs[0, low:high] - np.uint32(first)] = pairs[1, low:high]
    np.save(folder / "kept.npy", kept)


def repeated(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where the keys are that occur more than once; equal ones next to each other."""
    order = np.argsort(keys)
    ordered = keys[order]
    same = ordered[1:] == ordered[:-1]
    return order[np.concatenate([same, [False]]) | np.concatenate([[False], same])] if len(keys) else order


def count_sizes(sizes: NDArray[Any]) -> dict[int, int]:
    """Size → groups of that size, for sizes of at least 2."""
    values, counts = np.unique(sizes[sizes > 1], return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def key_ranges(documents: int, task_bytes: int) -> list[tuple[int, int]]:
    """First and last 64-bit key of ranges so small that a task can hold one: hashes spread evenly over them."""
    count = -(-documents * BYTES_PER_DOCUMENT // task_bytes) or 1
    edges = [(1 << 64) * i // count for i in range(count + 1)]
    return [(low, high - 1) for low, high in pairwise(edges)]


def _range_of_keys(
    paths: Sequence[Path], firsts: Sequence[int], low: int, high: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    def parts() -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint32]]]:
        for path, first in zip(paths, firsts, strict=True):
            keys = np.load(path)
            leading = keys[:, 0]
            inside = (leading >= np.uint64(low)) & (leading <= np.uint64(high)) & (keys != NO_KEY).any(axis=1)
            places = np.flatnonzero(inside)
            yield keys[places], (places + first).astype(np.uint32)

    keys, ids = zip(*parts(), strict=True)
    return np.concatenate(keys), np.concatenate(ids)
