"""The learned filter: trained on curated against raw documents, then applied to the raw ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.document_file import DocumentWriter, read_batches, read_documents
from data_pipeline.documents import Tally
from data_pipeline.heldout import text_key
from data_pipeline.prepare.reading import DOCUMENTS, TALLY, Part, write_tally
from data_pipeline.prepare.runner import Runner, Task
from data_pipeline.quality import Classifier, QualityConfig, keep, train_classifier
from data_pipeline.recipe import PrepareConfig, from_plain

CLASSIFIER = "quality-filter.npz"
REPORT = "report.json"
KEPT = "kept.npy"
#: Of a document that the filter is trained on: bounds the memory of its training.
_SAMPLE_CHARACTERS = 1 << 16


@dataclass(frozen=True)
class Scores:
    """What the filter says of a part: a mask of the kept documents, and a tally."""

    kept: Path
    tally: Path


def score_parts(runner: Runner, config: PrepareConfig, parts: Sequence[Part]) -> tuple[Path, dict[Path, Scores]]:
    """The classifier's folder, and for the documents of each filtered part what it keeps. Raises BadCorpus."""
    curated = [part for part in parts if part.corpus.name in config.quality.curated]
    raw = [part for part in parts if "quality" in part.corpus.stages]
    of_both = runner.map(
        "sample for the quality filter", sample_part, _samples(curated, config) + _samples(raw, config)
    )
    trained = runner.one(
        "train the quality filter",
        train_filter,
        curated=[str(folder / DOCUMENTS) for folder in of_both[: len(curated)]],
        raw=[str(folder / DOCUMENTS) for folder in of_both[len(curated) :]],
        settings=asdict(config.quality),
        seed=config.seed,
    )
    shared = {"classifier": str(trained / CLASSIFIER), "alpha": config.quality.pareto_alpha, "seed": config.seed}
    tasks = [Task({"documents": str(part.documents), **shared}, _size(part)) for part in raw]
    folders = runner.map("score", score_part, tasks)
    return trained, {
        part.documents: Scores(folder / KEPT, folder / TALLY) for part, folder in zip(raw, folders, strict=True)
    }


def _samples(parts: Sequence[Part], config: PrepareConfig) -> list[Task]:
    """Each part gives as many as the others; a small one gives all it has."""
    count = -(-config.quality.max_training_documents // max(1, len(parts)))
    return [
        Task({"documents": str(part.documents), "count": count, "seed": config.seed}, _size(part)) for part in parts
    ]


def sample_part(folder: Path, *, documents: str, count: int, seed: int) -> None:
    """The `count` documents with the lowest hashes: evenly spread, and the same in whatever order they come."""
    lowest: dict[bytes, tuple[str, str]] = {}  # by key: of equal documents one
    for batch in read_batches(Path(documents)):
        for text, source in zip(batch.texts, batch.sources, strict=True):
            lowest.setdefault(text_key(f"{seed} {text}"), (text[:_SAMPLE_CHARACTERS], source))
        lowest = dict(sorted(lowest.items())[:count])
    with DocumentWriter(folder / DOCUMENTS) as writer:
        for text, source in lowest.values():
            writer.append(text, source)


def train_filter(folder: Path, *, curated: list[str], raw: list[str], settings: dict[str, Any], seed: int) -> None:
    """One classifier for all that is filtered."""
    config = from_plain(QualityConfig, settings)
    classifier, report = train_classifier(_texts(curated), _texts(raw), config, seed)
    classifier.save(folder / CLASSIFIER)
    (folder / REPORT).write_text(json.dumps(asdict(report)))


def score_part(folder: Path, *, documents: str, classifier: str, alpha: float, seed: int) -> None:
    """Scores and draws for one part."""
    model, tally, kept = Classifier.load(Path(classifier)), Tally(), []
    for batch in read_batches(Path(documents)):
        texts = batch.texts
        scores = model.scores(texts)
        keys = np.array([int.from_bytes(text_key(text)[:8], "big") for text in texts], dtype=np.uint64)
        keeps = keep(scores, keys, seed, alpha)
        for text, source, score, kept_too in zip(texts, batch.sources, scores.tolist(), keeps.tolist(), strict=True):
            tally.observe("score", f"{min(int(score * 20), 19) / 20:.2f}")
            if not kept_too:
                tally.drop("quality: drawn out by its score", source, text)
        kept.append(keeps)
    np.save(folder / KEPT, np.concatenate(kept) if kept else np.zeros(0, dtype=bool))
    write_tally(folder / TALLY, tally)


def _texts(paths: Sequence[str]) -> list[str]:
    def documents() -> Iterator[str]:
        for path in paths:
            yield from (document.text for document in read_documents(Path(path)))

    return list(dict.fromkeys(documents()))  # a copy in another part must not be held out from itself


def _size(part: Part) -> float:
    return part.documents.stat().st_size
