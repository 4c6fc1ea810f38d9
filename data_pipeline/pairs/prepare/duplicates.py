"""Copies and near copies among the pictures of all parts; the one of smallest id of each group is the one to keep.

Ids number the pairs of all parts in the order of the parts, in 32 bits. Copies are found by 128-bit hashes of the files
(data_pipeline.dedup.exact), near copies by perceptual hashes (banding.py); what is near is connected, through others
too, and a group is what is connected (data_pipeline.dedup.clusters). What is found does not depend on how pairs are
divided into parts or work into tasks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dedup.clusters import cluster, write_outcome
from data_pipeline.dedup.exact import BYTES_PER_DOCUMENT, find_copies, key_ranges, mark_copies
from data_pipeline.errors import BadConfig
from data_pipeline.pairs.prepare.banding import BYTES_PER_PICTURE, find_leaders, find_near, tables
from data_pipeline.pairs.prepare.reading import Part
from data_pipeline.pairs.prepare.store import HASHES, KEYS
from data_pipeline.pairs.recipe import PairDedupConfig
from data_pipeline.prepare.runner import Runner, Task

OUTCOME = ("exact.npy", "near.npy", "kept_copy.npy", "group_keys.npy")
_MOST_PAIRS = 1 << 32


@dataclass
class Duplicates:
    """outcomes: for each part the folder that `mark` has filled."""

    outcomes: list[Path]
    firsts: list[int] = field(default_factory=list)
    """Id of the first pair of each part."""
    copy_sizes: dict[int, int] = field(default_factory=dict)
    """Size -> groups of so many equal pictures."""
    cluster_sizes: dict[int, int] = field(default_factory=dict)
    """Size -> groups of so many pictures that look alike, copies not counted."""


def find_duplicates(runner: Runner, parts: Sequence[Part], config: PairDedupConfig) -> Duplicates:
    """The copies and near copies among all parts, which are in order of priority. Raises BadConfig."""
    counts = [len(np.load(part.folder / HASHES, mmap_mode="r")) for part in parts]
    firsts = [0, *np.cumsum(counts).tolist()][:-1]
    total = sum(counts)
    if total >= _MOST_PAIRS:
        raise BadConfig(f"deduplication takes less than 2^32 pairs, not {total:,}: divide the corpora")
    signatures = [str(part.folder) for part in parts]
    task_bytes = max(1, int(config.memory_gib * (1 << 30) / max(1, runner.workers)))

    shared = {"signatures": signatures, "firsts": firsts}
    tasks = [Task({**shared, "low": low, "high": high}) for low, high in key_ranges(total, task_bytes)]
    found = runner.map("find copies", find_copies, tasks)
    paths = [str(folder) for folder in found]
    tasks = [
        Task({"copies": paths, "first": first, "documents": count}) for first, count in zip(firsts, counts, strict=True)
    ]
    copies = [str(folder) for folder in runner.map("mark copies", mark_copies, tasks)]

    ranges = key_ranges(total * BYTES_PER_PICTURE // BYTES_PER_DOCUMENT, task_bytes)
    near = {"parts": signatures, "copies": copies, "firsts": firsts, "colour": config.colour}
    tasks = [Task({**near, "low": low, "high": high}) for low, high in ranges]
    leaders = [str(folder) for folder in runner.map("find equal hashes", find_leaders, tasks)]
    number = sum(len(np.load(Path(folder) / HASHES, mmap_mode="r")) for folder in leaders)
    search = {"leaders": leaders, "distance": config.distance, "colour": config.colour}
    tasks = [
        Task({**search, "mask": mask, "low": low, "high": high})
        for mask in tables(number, config.distance)
        for low, high in ranges
    ]
    alike = [str(folder) for folder in runner.map("find near copies", find_near, tasks)]
    clustered = runner.one("cluster pictures", cluster, pairs=[*leaders, *alike])

    tasks = [
        Task({"first": first, "count": count, "copies": own, "clusters": str(clustered), **shared})
        for first, count, own in zip(firsts, counts, copies, strict=True)
    ]
    outcomes = runner.map("mark copies and near copies", mark, tasks)
    return Duplicates(outcomes, firsts, _sizes(found), _sizes([clustered]))


def mark(
    folder: Path, *, first: int, count: int, copies: str, clusters: str, signatures: list[str], firsts: list[int]
) -> None:
    """Task: what becomes of a part's pairs.

    Writes exact.npy and near.npy, bool: a copy, or a near copy, of an earlier one; kept_copy.npy, int64: the id of the
    first pair of the group; group_keys.npy, uint64: the first half of that pair's key.
    """
    write_outcome(folder, first=first, documents=count, copies=copies, clusters=clusters)
    (folder / "dropped.npy").unlink()
    kept = np.load(folder / "kept_copy.npy")
    keys = np.zeros(count, dtype=np.uint64)
    owners = np.searchsorted(firsts, kept, side="right") - 1
    for owner in np.unique(owners).tolist():
        here = owners == owner
        keys[here] = _first_halves(Path(signatures[owner]))[kept[here] - firsts[owner]]
    np.save(folder / "group_keys.npy", keys)


def _first_halves(part: Path) -> NDArray[np.uint64]:
    halves: NDArray[np.uint64] = np.load(part / KEYS, mmap_mode="r")[:, 0]
    return halves


def _sizes(folders: Sequence[Path]) -> dict[int, int]:
    total: Counter[int] = Counter()
    for folder in folders:
        total.update({int(size): count for size, count in json.loads((folder / "sizes.json").read_text()).items()})
    return dict(sorted(total.items()))
