"""Verified pairs → clusters, and what becomes of each document: the one with the smallest id of a cluster is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dedup.candidates import unpack
from data_pipeline.dedup.exact import count_sizes
from data_pipeline.kernels import compiled


def cluster(folder: Path, *, pairs: Sequence[str]) -> None:
    """Task: the connected components of verified pairs. Memory is about 40 bytes for each document in a pair.

    Writes ids.npy, uint32, ascending: the documents in pairs; roots.npy: the smallest id of each one's cluster; and
    sizes.json, how many clusters there are of each size.
    """
    ids, more = np.zeros(0, dtype=np.uint32), [np.zeros(0, dtype=np.uint32)]
    for path in pairs:
        more.append(np.unique(np.concatenate(unpack(np.load(Path(path) / "pairs.npy")))))
        if sum(map(len, more)) > len(ids):  # or else every file would cost a pass over all ids
            ids, more = np.unique(np.concatenate([ids, *more])), []
    ids = np.unique(np.concatenate([ids, *more]))
    parents = np.arange(len(ids), dtype=np.int64)
    for path in pairs:
        larger, smaller = unpack(np.load(Path(path) / "pairs.npy"))
        compiled(_unite)(np.searchsorted(ids, larger), np.searchsorted(ids, smaller), parents)
    compiled(_flatten)(parents)
    np.save(folder / "ids.npy", ids)
    np.save(folder / "roots.npy", ids[parents])
    sizes = np.bincount(parents, minlength=1)
    (folder / "sizes.json").write_text(json.dumps(count_sizes(sizes)))


def write_outcome(folder: Path, *, first: int, documents: int, copies: str | None, clusters: str | None) -> None:
    """Task: what becomes of a part's documents. copies: of exact.mark_copies; clusters: of `cluster`.

    Writes, with an entry for each document, exact.npy and near.npy, bool: dropped as an exact copy or as a near one;
    dropped.npy: either; kept_copy.npy, int64: the id of the document that is kept instead, or its own.
    """
    own = np.arange(first, first + documents, dtype=np.int64)
    kept = own if copies is None else np.load(Path(copies) / "kept.npy").astype(np.int64)
    exact = kept != own
    if clusters is not None:  # the one that an exact copy gives way to may give way to another
        ids = np.load(Path(clusters) / "ids.npy", mmap_mode="r")
        roots = np.load(Path(clusters) / "roots.npy", mmap_mode="r")
        kept = _roots(kept, ids, roots)
    dropped = kept != own
    np.save(folder / "exact.npy", exact)
    np.save(folder / "near.npy", dropped & ~exact)
    np.save(folder / "dropped.npy", dropped)
    np.save(folder / "kept_copy.npy", kept)


def _roots(documents: NDArray[np.int64], ids: NDArray[np.uint32], roots: NDArray[np.uint32]) -> NDArray[np.int64]:
    if not len(ids):
        return documents
    places = np.minimum(np.searchsorted(ids, documents.astype(np.uint32)), len(ids) - 1)
    return np.where(ids[places] == documents, roots[places], documents)


def _unite(larger: Any, smaller: Any, parents: Any) -> None:
    for pair in range(len(larger)):
        a, b = larger[pair], smaller[pair]
        while parents[a] != a:
            parents[a] = parents[parents[a]]
            a = parents[a]
        while parents[b] != b:
            parents[b] = parents[parents[b]]
            b = parents[b]
        parents[max(a, b)] = min(a, b)


def _flatten(parents: Any) -> None:
    for i in range(len(parents)):  # a parent is never after its child
        parents[i] = parents[parents[i]]
