"""Finds exact and near-duplicates among the documents of all parts: the phases, in their order.

Every phase is a list of tasks, each of which reads files and writes files; between them there is nothing but files, and
no task holds more than its share of `memory_gib`. Which documents are dropped does not depend on how documents are
divided into parts, hashes into ranges or tasks among workers: it is a function of the texts, their order and the
config.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from data_pipeline.dedup.candidates import find_pairs, merge_pairs, pair_ranges, unpack
from data_pipeline.dedup.clusters import cluster, write_outcome
from data_pipeline.dedup.config import DedupConfig
from data_pipeline.dedup.exact import find_copies, key_ranges, mark_copies, text_keys
from data_pipeline.dedup.minhash import NO_KEY, band_keys, hash_functions
from data_pipeline.dedup.shingles import shingle
from data_pipeline.dedup.verify import choose_examples, collect_sets, verify_pairs
from data_pipeline.document_file import read_batches
from data_pipeline.errors import BadConfig

if TYPE_CHECKING:
    from data_pipeline.prepare.runner import Task

_MOST_DOCUMENTS = 1 << 32


class Runner(Protocol):
    """Makes the calls of a phase: data_pipeline.prepare.runner."""

    def map(self, name: str, function: Callable[..., None], tasks: Sequence[Task]) -> list[Path]:
        """The folders that the tasks have filled, in their order."""
        ...


@dataclass(frozen=True)
class Part:
    """Consecutive documents."""

    documents: Path
    """A file of documents."""
    left_out: Sequence[tuple[Path, bool]] = ()
    """Files of a bool for each document (.npy), each with the value of those documents that take no part in this."""


@dataclass
class Duplicates:
    """Files hold an entry for each document of a part (.npy); there is one for each part."""

    exact: list[Path] = field(default_factory=list)
    """Bool: dropped as an exact copy of a document of smaller id."""
    near: list[Path] = field(default_factory=list)
    """Bool: dropped because the document with the smallest id in its cluster of near-duplicates is kept."""
    dropped: list[Path] = field(default_factory=list)
    """Bool: one or the other."""
    kept_copies: list[Path] = field(default_factory=list)
    """int64: the id of the document that is kept for this one, or its own."""
    copy_sizes: dict[int, int] = field(default_factory=dict)
    """Size -> groups of so many equal documents."""
    cluster_sizes: dict[int, int] = field(default_factory=dict)
    """Size -> clusters of so many near-duplicates, exact copies not counted."""
    pairs: list[tuple[int, int, float]] = field(default_factory=list)
    """Examples: the smaller id, the larger id and their Jaccard similarity, spread over the range of it, ascending."""
    candidates: int = 0
    """Pairs that were compared."""
    verified: int = 0
    """Pairs that were found to be near-duplicates."""
    candidate_files: list[Path] = field(default_factory=list)
    """All pairs that were compared, as numbers of candidates.pack, ascending over all files."""
    verified_files: list[Path] = field(default_factory=list)
    """All pairs that were found to be near-duplicates, in the same way."""


def find_duplicates(
    runner: Runner, parts: Sequence[Part], config: DedupConfig, *, exact: bool, near: bool, workers: int
) -> Duplicates:
    """Exact copies, near-duplicates or both among `parts`, which are in order of priority, highest first.

    workers: tasks that run at once, which share the memory. Raises BadConfig.
    """
    config.check()
    search = _Search(runner, parts, config, config.task_bytes(workers))
    if not parts or not (exact or near):
        return Duplicates()
    search.sign(exact, near)
    if exact:
        search.find_copies()
    if near:
        search.find_clusters()
    return search.write_outcome()


class _Search:
    def __init__(self, runner: Runner, parts: Sequence[Part], config: DedupConfig, task_bytes: int) -> None:
        self.runner, self.parts, self.config, self.task_bytes = runner, parts, config, task_bytes
        self.found = Duplicates()
        self.copies: list[str] = []
        self.clusters: str | None = None

    def sign(self, exact: bool, near: bool) -> None:
        functions = {"bands": self.config.bands if near else 0, "rows": self.config.rows, "seed": self.config.seed}
        shared = {"keys": exact, "shingle_words": self.config.shingle_words, **functions}
        calls = [{**_plain(part), **shared} for part in self.parts]
        self.sizes = [float(part.documents.stat().st_size) for part in self.parts]
        folders = self._map("sign", sign_part, calls, self.sizes)
        self.signatures = [str(folder) for folder in folders]
        self.documents = [int(np.load(folder / "bands.npy", mmap_mode="r").shape[1]) for folder in folders]
        self.firsts = [0, *np.cumsum(self.documents).tolist()][:-1]
        self.total = sum(self.documents)
        if self.total >= _MOST_DOCUMENTS:
            raise BadConfig(f"deduplication takes less than 2^32 documents, not {self.total:,}: divide the corpora")

    def find_copies(self) -> None:
        shared = {"signatures": self.signatures, "firsts": self.firsts}
        ranges = key_ranges(self.total, self.task_bytes)
        calls = [{**shared, "low": low, "high": high} for low, high in ranges]
        found = self._map("find copies", find_copies, calls)
        self.found.copy_sizes = _add_sizes(found)
        paths = [str(folder) for folder in found]
        calls = [{"copies": paths, "first": a, "documents": n} for a, n in self._extents()]
        self.copies = [str(folder) for folder in self._map("mark copies", mark_copies, calls)]

    def find_clusters(self) -> None:
        config = self.config
        shared: dict[str, Any] = {"signatures": self.signatures, "copies": self.copies, "firsts": self.firsts}
        ranges = key_ranges(self.total, self.task_bytes)
        calls = [{**shared, "band": b, "low": low, "high": high} for b in range(config.bands) for low, high in ranges]
        in_bands = self._map("find pairs", find_pairs, calls)

        ranges = pair_ranges([folder / "pairs.npy" for folder in in_bands], self.task_bytes)
        paths = [str(folder) for folder in in_bands]
        calls = [{"pairs": paths, "low": low, "high": high} for low, high in ranges]
        merged = self._map("merge pairs", merge_pairs, calls)
        self.found.candidate_files = [folder / "pairs.npy" for folder in merged]

        shared = {"ids": [str(folder) for folder in merged], "shingle_words": config.shingle_words}
        calls = [
            {"documents": str(part.documents), **shared, "first": first, "count": count}
            for part, (first, count) in zip(self.parts, self._extents(), strict=True)
        ]
        sets = [str(folder) for folder in self._map("collect shingles", collect_sets, calls, self.sizes)]
        shared = {"sets": sets, "firsts": self.firsts, "threshold": config.threshold}
        verified = self._map("verify pairs", verify_pairs, [{"pairs": str(path), **shared} for path in merged])
        self.found.verified_files = [folder / "pairs.npy" for folder in verified]
        self._read_reports([folder / "report.json" for folder in verified])

        [clustered] = self._map("cluster", cluster, [{"pairs": [str(folder) for folder in verified]}])
        self.found.cluster_sizes = _add_sizes([clustered])
        self.clusters = str(clustered)

    def write_outcome(self) -> Duplicates:
        copies: Sequence[str | None] = self.copies or [None] * len(self.parts)
        calls = [
            {"first": first, "documents": count, "copies": own, "clusters": self.clusters}
            for (first, count), own in zip(self._extents(), copies, strict=True)
        ]
        folders = self._map("mark duplicates", write_outcome, calls)
        found = self.found
        found.exact, found.near, found.dropped, found.kept_copies = (
            [folder / name for folder in folders] for name in ("exact.npy", "near.npy", "dropped.npy", "kept_copy.npy")
        )
        return found

    def _read_reports(self, paths: Sequence[Path]) -> None:
        reports = [json.loads(path.read_text()) for path in paths]
        self.found.candidates = sum(report["candidates"] for report in reports)
        self.found.verified = sum(report["verified"] for report in reports)
        chosen = choose_examples([tuple(example) for report in reports for example in report["examples"]])
        larger, smaller = unpack(np.array([pair for pair, _ in chosen], dtype=np.uint64))
        self.found.pairs = list(zip(smaller.tolist(), larger.tolist(), [j for _, j in chosen], strict=True))

    def _extents(self) -> Iterator[tuple[int, int]]:
        return zip(self.firsts, self.documents, strict=True)

    def _map(
        self,
        name: str,
        function: Callable[..., None],
        calls: Sequence[dict[str, Any]],
        weights: Sequence[float] | None = None,
    ) -> list[Path]:
        from data_pipeline.prepare.runner import Task  # prepare imports this module

        weights = weights or [1.0] * len(calls)
        return self.runner.map(name, function, [Task(call, w) for call, w in zip(calls, weights, strict=True)])


def sign_part(
    folder: Path,
    *,
    documents: str,
    left_out: Sequence[tuple[str, bool]],
    keys: bool,
    shingle_words: int,
    bands: int,
    rows: int,
    seed: int,
) -> None:
    """Task: the hashes of a part's documents.

    Writes keys.npy, uint64 [documents, 2], if `keys`: exact.text_keys; and bands.npy, uint64 [bands, documents]:
    minhash.band_keys. A document that is left out has minhash.NO_KEY everywhere, which matches nothing.
    """
    functions = hash_functions(seed, bands * rows)
    masks = [np.load(path) != value for path, value in left_out]
    in_keys = [np.zeros((0, 2), dtype=np.uint64)]
    in_bands = [np.zeros((bands, 0), dtype=np.uint64)]
    for batch in read_batches(Path(documents)):
        wanted = np.ones(len(batch), dtype=bool)
        for mask in masks:
            wanted &= mask[batch.first : batch.first + len(batch)]
        shingles = shingle(*batch.utf8(), wanted, shingle_words)
        if keys:
            in_keys.append(np.where(wanted[:, None], text_keys(shingles), NO_KEY))
        in_bands.append(band_keys(shingles, functions, bands))
    if keys:
        np.save(folder / "keys.npy", np.concatenate(in_keys))
    np.save(folder / "bands.npy", np.concatenate(in_bands, axis=1))


def _plain(part: Part) -> dict[str, Any]:
    return {
        "documents": str(part.documents),
        "left_out": [[str(path), value] for path, value in part.left_out],
    }


def _add_sizes(folders: Sequence[Path]) -> dict[int, int]:
    total: Counter[int] = Counter()
    for folder in folders:
        total.update({int(size): count for size, count in json.loads((folder / "sizes.json").read_text()).items()})
    return dict(sorted(total.items()))
