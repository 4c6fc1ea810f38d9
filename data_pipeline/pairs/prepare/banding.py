"""All pairs of 64-bit hashes that differ in few bits, without comparing all with all; exact.

Cut into m blocks of bits, two hashes that differ in d bits at most agree in m - d blocks or more (pigeonhole). So for
every choice of m - d blocks, hashes that agree in those are put together and compared in full: Norouzi, Punjani and
Fleet 2012 with Manku, Jain and Das Sarma 2007's tables. m grows with the number of hashes, from d + 1 on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dedup.candidates import pack
from data_pipeline.kernels import compiled
from data_pipeline.pairs.prepare.store import HASHES, THUMBS

#: Memory that a task takes for each picture of its range, at most.
BYTES_PER_PICTURE = 288
_BITS = 64
_MOST_TABLES = 500
#: What sorting a hash costs, in comparisons of two.
_SORT_COST = 100


def tables(hashes: int, distance: int) -> list[int]:
    """The masks of the tables that find all pairs within `distance` bits: the cheapest choice of blocks."""

    def cost(blocks: int) -> float:
        bits = _BITS * (blocks - distance) / blocks
        return math.comb(blocks, distance) * (_SORT_COST * hashes + hashes * hashes / 2 / 2**bits)

    choices = [m for m in range(distance + 1, _BITS) if math.comb(m, distance) <= _MOST_TABLES]
    blocks = min(choices, key=cost)
    edges = [_BITS * block // blocks for block in range(blocks + 1)]
    masks = [(1 << high) - (1 << low) for low, high in itertools.pairwise(edges)]
    return [sum(chosen) for chosen in itertools.combinations(masks, blocks - distance)]


def find_leaders(
    folder: Path,
    *,
    parts: Sequence[str],
    copies: Sequence[str],
    firsts: Sequence[int],
    colour: float,
    low: int,
    high: int,
) -> None:
    """Task: the pictures with scrambled hashes from `low` to `high`; of those with equal hashes and colours the first.

    A picture joins the first earlier one of equal hash whose colours differ by `colour` at most, on average. Thousands
    of equal pictures (placeholders) so cost as many comparisons and not their square.
    copies: of exact.mark_copies; exact copies take no part. Writes hashes.npy, ids.npy and colours.npy of those that
    have joined none, and pairs.npy: those that have, with whom (candidates.pack).
    """
    hashes, ids, thumbs = _gathered(parts, copies, firsts, low, high)
    order = np.lexsort((ids, hashes))
    hashes, ids, thumbs = hashes[order], ids[order], thumbs[order]
    leaders = np.arange(len(ids), dtype=np.int64)
    compiled(_lead)(hashes, thumbs, np.int64(_limit(colour)), leaders)
    joined = leaders != np.arange(len(ids))
    np.save(folder / "pairs.npy", pack(ids[joined], ids[leaders[joined]]))
    np.save(folder / "ids.npy", ids[~joined])
    np.save(folder / HASHES, hashes[~joined])
    np.save(folder / THUMBS, thumbs[~joined])


def find_near(
    folder: Path, *, leaders: Sequence[str], distance: int, colour: float, mask: int, low: int, high: int
) -> None:
    """Task: connects pictures whose hashes agree under the mask, if they look alike.

    That is, if the hashes differ in `distance` bits at most, and the colours by `colour` at most, on average. Of those
    whose scrambled hash under the mask is from `low` to `high`. Writes pairs.npy, sorted: as many as it takes to
    connect what is connected, not all.
    """
    keys, hashes, ids, thumbs = _agreeing(leaders, mask, low, high)
    order = np.lexsort((ids, keys))
    keys, hashes, ids, thumbs = keys[order], hashes[order], ids[order], thumbs[order]
    parents = np.arange(len(ids), dtype=np.int64)
    compiled(_connect)(keys, hashes, thumbs, np.int64(distance), np.int64(_limit(colour)), parents)
    other = parents != np.arange(len(ids))
    mine, theirs = ids[other], ids[parents[other]]
    np.save(folder / "pairs.npy", np.sort(pack(np.maximum(mine, theirs), np.minimum(mine, theirs))))


def scrambled(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A one-to-one function that spreads hashes evenly over 64 bits (splitmix64)."""
    mixed = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _limit(colour: float) -> int:
    """The mean difference as a sum over the 48 numbers."""
    return int(colour * 48)


def _inside(keys: NDArray[np.uint64], low: int, high: int) -> NDArray[np.bool_]:
    return (keys >= np.uint64(low)) & (keys <= np.uint64(high))


def _gathered(
    parts: Sequence[str], copies: Sequence[str], firsts: Sequence[int], low: int, high: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint8]]:
    hashes, ids, thumbs = [], [], []
    for part, copy, first in zip(parts, copies, firsts, strict=True):
        own = np.load(Path(part) / HASHES)
        kept = np.load(Path(copy) / "kept.npy")
        numbers = np.arange(first, first + len(own), dtype=np.uint32)
        chosen = np.flatnonzero(_inside(scrambled(own), low, high) & (kept == numbers))
        hashes.append(own[chosen])
        ids.append(numbers[chosen])
        thumbs.append(np.load(Path(part) / THUMBS, mmap_mode="r")[chosen])
    return np.concatenate(hashes), np.concatenate(ids), np.concatenate(thumbs)


def _agreeing(
    leaders: Sequence[str], mask: int, low: int, high: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint8]]:
    keys, hashes, ids, thumbs = [], [], [], []
    for leader in leaders:
        own = np.load(Path(leader) / HASHES)
        under = scrambled(own & np.uint64(mask))
        chosen = np.flatnonzero(_inside(under, low, high))
        keys.append(under[chosen])
        hashes.append(own[chosen])
        ids.append(np.load(Path(leader) / "ids.npy", mmap_mode="r")[chosen])
        thumbs.append(np.load(Path(leader) / THUMBS, mmap_mode="r")[chosen])
    return np.concatenate(keys), np.concatenate(hashes), np.concatenate(ids), np.concatenate(thumbs)


def _lead(hashes: Any, thumbs: Any, limit: Any, leaders: Any) -> None:
    found = np.empty(len(hashes), dtype=np.int64)  # positions of this hash's leaders
    count = 0
    for i in range(len(hashes)):
        if i == 0 or hashes[i] != hashes[i - 1]:
            count = 0
        joined = False
        for k in range(count):
            difference = np.int64(0)
            for c in range(thumbs.shape[1]):
                difference += abs(np.int64(thumbs[i, c]) - np.int64(thumbs[found[k], c]))
            if difference <= limit:
                leaders[i] = found[k]
                joined = True
                break
        if not joined:
            found[count] = i
            count += 1


def _connect(keys: Any, hashes: Any, thumbs: Any, distance: Any, limit: Any, parents: Any) -> None:
    begin = 0
    for i in range(len(keys)):
        if keys[i] != keys[begin]:
            begin = i
        for j in range(begin, i):
            bits = hashes[i] ^ hashes[j]
            count = 0
            while bits and count <= distance:
                bits &= bits - np.uint64(1)
                count += 1
            if count > distance:
                continue
            difference = np.int64(0)
            for c in range(thumbs.shape[1]):
                difference += abs(np.int64(thumbs[i, c]) - np.int64(thumbs[j, c]))
            if difference > limit:
                continue
            a, b = i, j
            while parents[a] != a:
                parents[a] = parents[parents[a]]
                a = parents[a]
            while parents[b] != b:
                parents[b] = parents[parents[b]]
                b = parents[b]
            parents[max(a, b)] = min(a, b)
    for i in range(len(parents)):  # a parent is never after its child
        parents[i] = parents[parents[i]]
