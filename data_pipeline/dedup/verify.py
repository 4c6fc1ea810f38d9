"""Candidates → verified pairs: the exact Jaccard similarity of their shingle sets.

Band keys cannot tell how similar two documents are, and an estimate from 128 minima is off by 0.03: cut at 0.80, it
would lose pairs that are above. So the shingle sets of the candidates, and of no others, are computed again and
compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dedup.candidates import unpack
from data_pipeline.dedup.shingles import shingle
from data_pipeline.document_file import read_batches
from data_pipeline.kernels import compiled

#: Pairs shown in a report, spread over so many classes of similarity.
EXAMPLES = 20
#: Memory for the shingle sets that a task holds at once.
BLOCK_BYTES = 1 << 27
_NO_LENGTHS = np.zeros(0, dtype=np.int64)


def collect_sets(
    folder: Path, *, documents: str, ids: Sequence[str], first: int, count: int, shingle_words: int
) -> None:
    """Task: the shingle sets of those documents of a part, ids first to first + count - 1, that occur in pairs.

    Writes ids.npy, uint32, ascending; starts.npy, int64 [ids + 1]; and hashes.bin, the sets end to end: uint64, each
    ascending.
    """
    wanted = np.zeros(count, dtype=bool)
    for path in ids:
        own = np.load(Path(path) / "ids.npy", mmap_mode="r")
        begin, end = np.searchsorted(own, [first, first + count])
        wanted[own[begin:end] - np.uint32(first)] = True
    sizes = [np.zeros(1, dtype=np.int64)]
    with open(folder / "hashes.bin", "wb") as file:
        for batch in read_batches(Path(documents)) if wanted.any() else ():
            here = wanted[batch.first : batch.first + len(batch)]
            if here.any():
                hashes, lengths = _sets(*batch.utf8(), here, shingle_words)
                hashes.tofile(file)
                sizes.append(lengths)
    np.save(folder / "ids.npy", (np.flatnonzero(wanted) + first).astype(np.uint32))
    np.save(folder / "starts.npy", np.cumsum(np.concatenate(sizes)))


def verify_pairs(folder: Path, *, pairs: str, sets: Sequence[str], firsts: Sequence[int], threshold: float) -> None:
    """Task: which pairs have a Jaccard similarity of at least `threshold`. sets: of collect_sets, for each part.

    Writes pairs.npy, sorted; and report.json: how many there were and are, and examples: [class, rank, pair,
    similarity].
    """
    candidates = np.load(Path(pairs) / "pairs.npy")
    similarity = _similarity(candidates, [Path(path) for path in sets], np.array(firsts))
    verified = similarity >= threshold
    np.save(folder / "pairs.npy", candidates[verified])
    examples = _examples(candidates[verified], similarity[verified], threshold)
    report = {"candidates": len(candidates), "verified": int(verified.sum()), "examples": examples}
    (folder / "report.json").write_text(json.dumps(report))


def choose_examples(classes: Sequence[tuple[int, int, int, float]]) -> list[tuple[int, float]]:
    """EXAMPLES of the given (class, rank, pair, similarity): a similar number of each class, those of lowest rank."""
    turn: dict[int, int] = {}
    ordered = []
    for number, rank, pair, similarity in sorted(classes):
        turn[number] = turn.get(number, 0) + 1
        ordered.append((turn[number], rank, pair, similarity))
    chosen = sorted(ordered)[:EXAMPLES]
    return [(pair, similarity) for similarity, pair in sorted((example[3], example[2]) for example in chosen)]


@dataclass
class _Sets:
    """Shingle sets of some documents of a part."""

    ids: NDArray[np.uint32]
    starts: NDArray[np.int64]
    hashes: NDArray[np.uint64]

    @classmethod
    def load(cls, folder: Path) -> _Sets:
        """What collect_sets wrote; the hashes stay on disk."""
        starts = np.load(folder / "starts.npy")
        hashes = np.memmap(folder / "hashes.bin", np.uint64, "r", shape=int(starts[-1]))
        return cls(np.load(folder / "ids.npy"), starts, hashes)

    def lengths(self, ids: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Sizes of the sets of these documents."""
        return np.diff(self.starts)[np.searchsorted(self.ids, ids)]

    def of(self, ids: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """A copy of the sets of these documents, end to end; the file need not stay open."""
        places = np.searchsorted(self.ids, ids)
        return np.concatenate(
            [self.hashes[a:b] for a, b in zip(self.starts[places], self.starts[places + 1], strict=True)]
        )


def _similarity(pairs: NDArray[np.uint64], sets: Sequence[Path], firsts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Reads the sets of as many larger ids as a block may hold, then passes by those of the smaller ids, part by part.

    So a part is opened once a block, and memory is bounded whatever the number of parts.
    """
    larger, smaller = unpack(pairs)
    out = np.empty(len(pairs))
    ids, places = np.unique(larger, return_inverse=True)
    lengths = np.concatenate([_NO_LENGTHS, *(_Sets.load(sets[p]).lengths(own) for p, own in _by_part(ids, firsts))])
    blocks = np.cumsum(lengths) * 8 // BLOCK_BYTES
    for block in np.unique(blocks).tolist():
        begin, end = np.searchsorted(blocks, [block, block + 1])
        own = _by_part(ids[begin:end], firsts)
        held = np.concatenate([_Sets.load(sets[part]).of(some) for part, some in own])
        starts = np.cumsum(np.concatenate([[0], lengths[begin:end]]))
        here = np.arange(*np.searchsorted(places, [begin, end]))
        here = here[np.argsort(smaller[here], kind="stable")]
        done = 0
        for part, some in _by_part(smaller[here], firsts):
            now, done = here[done : done + len(some)], done + len(some)
            other = _Sets.load(sets[part])
            right = np.asarray(other.hashes), other.starts, np.searchsorted(other.ids, some)
            result = np.empty(len(now))
            compiled(_jaccard)(held, starts, places[now] - begin, *right, result)
            out[now] = result
    return out


def _by_part(ids: NDArray[np.uint32], firsts: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Ascending ids, divided by the part that they are in."""
    parts = np.searchsorted(firsts, ids, side="right") - 1
    for some in np.split(np.arange(len(ids)), np.flatnonzero(parts[1:] != parts[:-1]) + 1) if len(ids) else []:
        yield int(parts[some[0]]), ids[some]


def _sets(
    data: NDArray[np.uint8], starts: NDArray[np.int64], wanted: NDArray[np.bool_], shingle_words: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    found = shingle(data, starts, wanted, shingle_words)
    hashes, lengths = found.hashes, np.diff(found.starts)
    begins = found.starts[:-1][wanted].tolist()
    for begin, end in zip(begins, [*begins[1:], len(hashes)], strict=True):
        hashes[begin:end].sort()
    new = np.ones(len(hashes), dtype=bool)
    new[1:] = hashes[1:] != hashes[:-1]
    new[found.starts[:-1][lengths > 0]] = True
    kept = np.concatenate([[0], np.cumsum(new)])[found.starts]
    return hashes[new], np.diff(kept)[wanted]


def _examples(
    pairs: NDArray[np.uint64], similarity: NDArray[np.float64], threshold: float
) -> list[tuple[int, int, int, float]]:
    width = (1 - threshold) / EXAMPLES or 1.0
    classes = np.minimum((similarity - threshold) // width, EXAMPLES - 1).astype(np.int64)
    ranks = pairs * np.uint64(0x9E3779B97F4A7C15)  # a hash that depends on the pair alone
    ranks = (ranks ^ (ranks >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93) >> np.uint64(12)
    order = np.lexsort((ranks, classes))
    places = np.concatenate([order[classes[order] == number][:EXAMPLES] for number in range(EXAMPLES)])
    columns = classes[places], ranks[places], pairs[places], similarity[places]
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _jaccard(
    one: Any, one_starts: Any, one_places: Any, other: Any, other_starts: Any, other_places: Any, out: Any
) -> None:
    for pair in range(len(out)):
        i, i_end = one_starts[one_places[pair]], one_starts[one_places[pair] + 1]
        j, j_end = other_starts[other_places[pair]], other_starts[other_places[pair] + 1]
        union = i_end - i + j_end - j
        common = np.int64(0)
        while i < i_end and j < j_end:
            a, b = one[i], other[j]
            common += np.int64(a == b)
            i, j = i + np.int64(a <= b), j + np.int64(b <= a)
        out[pair] = common / (union - common)
