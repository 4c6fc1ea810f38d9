"""Pairs of documents that may be near-duplicates: those with an equal key in some band.

A pair is one 64-bit number, the larger id before the smaller. Sorted, the pairs of a document with the smaller ones are
together; there are few of them for any document, whereas one document may be the smaller one of millions of pairs. So
ranges of the larger id divide any collection into tasks of bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dedup.exact import repeated
from data_pipeline.dedup.minhash import NO_KEY
from data_pipeline.kernels import compiled

#: Of a group of at most so many documents with an equal key, all pairs are compared.
ALL_PAIRS = 16
#: In a larger group, each document with the first one and with so many before it: pairs grow with documents, not with
#: their square. What is similar is connected through others, in this band or in another.
PREDECESSORS = 4
#: Memory that `merge_pairs` takes for a pair.
BYTES_PER_PAIR = 24
#: Pairs of a merged file, about: seconds of work for who verifies them.
_PAIRS_PER_FILE = 1 << 20
_SAMPLES = 1024
_ID_BITS = np.uint64(32)
_ID_MASK = np.uint64(0xFFFF_FFFF)


def pack(larger: NDArray[Any], smaller: NDArray[Any]) -> NDArray[np.uint64]:
    """Pairs of ids as numbers."""
    return (larger.astype(np.uint64) << _ID_BITS) | smaller.astype(np.uint64)


def unpack(pairs: NDArray[np.uint64]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The larger and the smaller ids."""
    return (pairs >> _ID_BITS).astype(np.uint32), (pairs & _ID_MASK).astype(np.uint32)


def find_pairs(
    folder: Path,
    *,
    signatures: Sequence[str],
    copies: Sequence[str],
    firsts: Sequence[int],
    band: int,
    low: int,
    high: int,
) -> None:
    """Task: the candidates of a band among keys from low to high, both included. copies: of exact.mark_copies, or none.

    Writes pairs.npy, sorted.
    """
    keys, ids = _range_of_keys(signatures, copies, firsts, band, low, high)
    again = repeated(keys)
    keys, ids = keys[again], ids[again]
    order = np.lexsort((ids, keys))
    keys, ids = keys[order], ids[order]
    edges = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]])) if len(keys) else np.zeros(1, int)
    del keys, again, order
    np.save(folder / "pairs.npy", group_pairs(ids, edges))


def group_pairs(ids: NDArray[np.uint32], edges: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The candidates of the groups `ids[edges[i] : edges[i + 1]]`, each ascending. Sorted."""
    pairs = np.empty(_count_pairs(np.diff(edges)), dtype=np.uint64)
    compiled(_pair)(ids, edges, np.int64(ALL_PAIRS), np.int64(PREDECESSORS), pairs)
    pairs.sort()
    return pairs


def pair_ranges(files: Sequence[Path], task_bytes: int) -> list[tuple[int, int]]:
    """Ranges of the larger id, first and last, that hold about equally many pairs and few enough for a task."""
    total = sum(len(np.load(file, mmap_mode="r")) for file in files)
    count = max(1, -(-total // max(1, min(_PAIRS_PER_FILE, task_bytes // (2 * BYTES_PER_PAIR)))))
    stride = max(1, total // (_SAMPLES * count))
    samples = [np.load(file, mmap_mode="r")[::stride] >> _ID_BITS for file in files]
    sample = np.sort(np.concatenate([*samples, [np.uint64(0)]]))
    inner = np.unique(sample[[len(sample) * i // count for i in range(1, count)]]).tolist()
    edges = [0, *(edge for edge in inner if edge > 0), 1 << 32]
    return [(low, high - 1) for low, high in pairwise(edges)]


def merge_pairs(folder: Path, *, pairs: Sequence[str], low: int, high: int) -> None:
    """Task: the pairs of all bands whose larger id is from low to high, each once.

    Writes pairs.npy, sorted, and ids.npy: the documents in them, ascending.
    """

    def slices() -> Iterator[NDArray[np.uint64]]:
        for path in pairs:
            own = np.load(Path(path) / "pairs.npy", mmap_mode="r")
            begin = np.searchsorted(own, np.uint64(low << 32))
            end = np.searchsorted(own, np.uint64((high << 32) | 0xFFFF_FFFF), side="right")
            yield np.array(own[begin:end])  # a copy: thousands of open maps are more than a process may have

    merged = np.concatenate(list(slices()))
    merged.sort()
    merged = merged[np.concatenate([[True], merged[1:] != merged[:-1]])] if len(merged) else merged
    np.save(folder / "pairs.npy", merged)
    larger, smaller = unpack(merged)
    np.save(folder / "ids.npy", np.union1d(larger, smaller))


def _range_of_keys(
    signatures: Sequence[str], copies: Sequence[str], firsts: Sequence[int], band: int, low: int, high: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    def parts() -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint32]]]:
        for number, (signature, first) in enumerate(zip(signatures, firsts, strict=True)):
            keys = np.array(np.load(Path(signature) / "bands.npy", mmap_mode="r")[band])
            inside = (keys >= np.uint64(low)) & (keys <= np.uint64(high)) & (keys != NO_KEY)
            if copies:
                kept = np.load(Path(copies[number]) / "kept.npy")
                inside &= kept == np.arange(first, first + len(kept), dtype=np.uint32)
            places = np.flatnonzero(inside)
            yield keys[places], (places + first).astype(np.uint32)

    keys, ids = zip(*parts(), strict=True)
    return np.concatenate(keys), np.concatenate(ids)


def _count_pairs(sizes: NDArray[np.int64]) -> int:
    # Of a large group each document but the first has one with it and one with each of its predecessors, save that the
    # first few have fewer predecessors.
    large = (sizes - 1) * (PREDECESSORS + 1) - PREDECESSORS * (PREDECESSORS + 1) // 2
    return int(np.where(sizes <= ALL_PAIRS, sizes * (sizes - 1) // 2, large).sum())


def _pair(ids: Any, edges: Any, all_pairs: Any, predecessors: Any, pairs: Any) -> None:
    count = 0
    for group in range(len(edges) - 1):
        begin, end = edges[group], edges[group + 1]
        for larger in range(begin + 1, end):
            start = begin if end - begin <= all_pairs else max(begin, larger - predecessors)
            if start > begin:
                pairs[count] = (np.uint64(ids[larger]) << _ID_BITS) | np.uint64(ids[begin])
                count += 1
            for smaller in range(start, larger):
                pairs[count] = (np.uint64(ids[larger]) << _ID_BITS) | np.uint64(ids[smaller])
                count += 1
