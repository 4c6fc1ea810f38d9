"""From all documents to those that are trained on and those that are held out.

The masks of the earlier phases are applied, evaluation sets are cut out, a share is held out by hash, and what is held
out loses the documents that occur in the training text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decontamination import DecontaminationConfig, EvaluationGrams, cut, gram_documents, matches
from data_pipeline.document_file import DocumentWriter, read_batches, read_documents
from data_pipeline.documents import Document, Tally
from data_pipeline.errors import BadCorpus
from data_pipeline.heldout import found_shingles, is_held_out, known_shingles, overlap
from data_pipeline.prepare.reading import DOCUMENTS, TALLY, Part, apply_stages, located, write_tally
from data_pipeline.prepare.runner import Runner, Task
from data_pipeline.recipe import CorpusConfig, PrepareConfig, from_plain
from data_pipeline.sources import SourceFile
from data_pipeline.sources import read_documents as read_sources
from data_pipeline.stages.extraction import ExtractionConfig, extraction

GRAMS = "grams.npz"
HELD_OUT = "held-out.arrow"
_COUNTS = "counts.json"
_TOLD = "told.txt"


@dataclass(frozen=True)
class Mask:
    """Documents that a stage leaves out: where `path`'s bool is `value`. reason None: it has been counted already."""

    stage: str
    path: Path
    value: bool
    reason: str | None = None


@dataclass(frozen=True)
class Selected:
    """What is left of a part. Documents and bytes of text of each file."""

    corpus: CorpusConfig
    training: Path
    held_out: Path
    tally: Path
    training_size: tuple[int, int]
    held_out_size: tuple[int, int]


def select(
    runner: Runner, config: PrepareConfig, parts: Sequence[Part], masks: Mapping[Path, Sequence[Mask]]
) -> list[Selected]:
    """Applies masks and decontamination and holds a share out. masks: for the documents of a part, in stage order."""
    plain = {part.documents: [_plain(mask) for mask in masks.get(part.documents, ())] for part in parts}
    clean = [part for part in parts if "decontaminate" in part.corpus.stages]
    evaluation = _evaluation(runner, config, clean, plain) if clean else None
    tasks = [
        Task(
            {
                "documents": str(part.documents),
                "masks": plain[part.documents],
                "evaluation": evaluation if "decontaminate" in part.corpus.stages else None,
                "fraction": held_out_fraction(config, part.corpus),
            },
            part.documents.stat().st_size,
        )
        for part in parts
    ]
    return [
        _selected(part.corpus, folder / DOCUMENTS, folder / HELD_OUT, folder)
        for part, folder in zip(parts, runner.map("select", select_part, tasks), strict=True)
    ]


def check_held_out(runner: Runner, config: PrepareConfig, parts: Sequence[Selected]) -> list[Selected]:
    """The same parts, with the held-out documents that overlap with the training text left out."""
    if not any(part.held_out_size[0] for part in parts):
        return list(parts)
    known = runner.one("held-out shingles", gather_shingles, held_out=[str(part.held_out) for part in parts])
    tasks = [
        Task({"known": str(known / "known.npy"), "training": str(part.training)}, part.training_size[1])
        for part in parts
    ]
    found = [str(folder / "found.npy") for folder in runner.map("overlap with held-out text", find_shingles, tasks)]
    both = runner.one("overlap", unite, known=str(known / "known.npy"), found=found)
    tasks = [
        Task(
            {
                "held_out": str(part.held_out),
                "known": str(known / "known.npy"),
                "found": str(both / "found.npy"),
                "most": config.held_out_overlap,
            },
            part.held_out_size[1],
        )
        for part in parts
    ]
    folders = runner.map("held out", drop_overlapping, tasks)
    return [
        Selected(
            part.corpus, part.training, folder / HELD_OUT, part.tally, part.training_size, _counts(folder)[HELD_OUT]
        )
        for part, folder in zip(parts, folders, strict=True)
    ]


def held_out_fraction(config: PrepareConfig, corpus: CorpusConfig) -> float:
    """The share of the corpus's documents that is held out."""
    return config.validation_fraction if corpus.validation_fraction is None else corpus.validation_fraction


# -- decontamination ---------------------------------------------------------------------------------------------------


def _evaluation(
    runner: Runner, config: PrepareConfig, parts: Sequence[Part], masks: Mapping[Path, list[dict[str, Any]]]
) -> dict[str, Any]:
    settings = config.decontaminate
    files = located(config, settings.evaluation_sets, [], "decontaminate.evaluation_sets")
    grams = runner.one(
        "evaluation sets",
        read_evaluation,
        files=[asdict(file) for file in files],
        settings=asdict(settings),
        damaged_files=config.damaged_files,
        max_document_bytes=config.max_document_bytes,
    )
    runner.progress.say((grams / _TOLD).read_text())
    tasks = [
        Task(
            {"documents": str(p.documents), "masks": masks[p.documents], "grams": str(grams / GRAMS)},
            p.documents.stat().st_size,
        )
        for p in parts
    ]
    counted = runner.map("count evaluation n-grams", count_grams, tasks)
    ignored = runner.one(
        "frequent n-grams",
        find_frequent,
        counts=[str(folder / "counts.npy") for folder in counted],
        most=settings.max_gram_documents,
    )
    return {"grams": str(grams / GRAMS), "ignored": str(ignored / "ignored.npy"), "settings": asdict(settings)}


def read_evaluation(
    folder: Path,
    *,
    files: list[dict[str, Any]],
    settings: dict[str, Any],
    damaged_files: Literal["stop", "keep"],
    max_document_bytes: int,
) -> None:
    """The n-grams of the evaluation sets. Raises BadCorpus if there are none: nothing would be cut out."""
    config, tally = from_plain(DecontaminationConfig, settings), Tally()
    read = read_sources(
        [SourceFile(**file) for file in files],
        tally,
        text_field=config.text_field,
        damaged_files=damaged_files,
        max_document_bytes=max_document_bytes,
    )
    documents = apply_stages(read, [("extract", extraction(ExtractionConfig()))], tally)
    grams = EvaluationGrams.of((document.text for document in documents), config)
    if not len(grams):
        raise BadCorpus(
            f"the evaluation sets give no n-grams, so that nothing would be cut out: {tally}; mend them, or "
            f"decontaminate.text_field ({config.text_field}) or decontaminate.min_words ({config.min_words})"
        )
    grams.save(folder / GRAMS)
    (folder / _TOLD).write_text(f"evaluation sets: {tally}; {len(grams)} n-grams")


def count_grams(folder: Path, *, documents: str, masks: list[dict[str, Any]], grams: str) -> None:
    """In how many documents of the part each n-gram occurs."""
    known = EvaluationGrams.load(Path(grams))
    texts = (document.text for document in _unmasked(documents, masks, Tally()))
    np.save(folder / "counts.npy", gram_documents(texts, known))


def find_frequent(folder: Path, *, counts: list[str], most: int) -> None:
    """Which n-grams are so frequent that they are common phrases."""
    total = sum(np.load(path) for path in counts)
    np.save(folder / "ignored.npy", total > most)


# -- selection ---------------------------------------------------------------------------------------------------------


def select_part(
    folder: Path, *, documents: str, masks: list[dict[str, Any]], evaluation: dict[str, Any] | None, fraction: float
) -> None:
    """One part: its training and its held-out documents."""
    tally = Tally()
    kept: Iterator[Document] = _unmasked(documents, masks, tally)
    if evaluation is not None:
        kept = _decontaminated(kept, evaluation, tally)
    training, held_out = DocumentWriter(folder / DOCUMENTS), DocumentWriter(folder / HELD_OUT)
    with training, held_out:
        for document in kept:
            chosen = held_out if fraction and is_held_out(document.text, fraction) else training
            chosen.append(document.text, document.source)
    write_tally(folder / TALLY, tally)
    _write_counts(folder, {DOCUMENTS: training, HELD_OUT: held_out})


def _unmasked(documents: str, masks: list[dict[str, Any]], tally: Tally) -> Iterator[Document]:
    loaded = [(mask, np.load(mask["path"]) == mask["value"]) for mask in masks]
    for mask in masks:
        tally.kept.setdefault(mask["stage"], [0, 0])
    for batch in read_batches(Path(documents)):
        for number, (text, source) in enumerate(zip(batch.texts, batch.sources, strict=True), start=batch.first):
            document = Document(text, source)
            for mask, leaves_out in loaded:
                if leaves_out[number]:
                    if mask["reason"] is not None:
                        tally.drop(mask["reason"], source, text)
                    break
                tally.keep(mask["stage"], document)
            else:
                yield document


def _decontaminated(documents: Iterator[Document], evaluation: dict[str, Any], tally: Tally) -> Iterator[Document]:
    grams = EvaluationGrams.load(Path(evaluation["grams"]))
    ignored: NDArray[np.bool_] = np.load(evaluation["ignored"])
    config = from_plain(DecontaminationConfig, evaluation["settings"])
    tally.kept.setdefault("decontaminate", [0, 0])
    for document in documents:
        pieces = cut(document.text, matches(document.text, grams), ignored, config)
        if not pieces:
            why = "too many pieces" if pieces is None else "no piece is long enough"
            tally.drop(f"decontaminate: {why}", document.source, document.text)
            continue
        if pieces != [document.text]:
            tally.observe("decontaminated", f"{len(pieces)}")
        for number, piece in enumerate(pieces):
            source = document.source if len(pieces) == 1 else f"{document.source}#{number}"
            kept = Document(piece, source)
            tally.keep("decontaminate", kept)
            yield kept


def _plain(mask: Mask) -> dict[str, Any]:
    return {"stage": mask.stage, "path": str(mask.path), "value": mask.value, "reason": mask.reason}


# -- held-out text -----------------------------------------------------------------------------------------------------


def gather_shingles(folder: Path, *, held_out: list[str]) -> None:
    """The shingles of everything that is held out."""
    texts = (document.text for path in held_out for document in read_documents(Path(path)))
    np.save(folder / "known.npy", known_shingles(texts))


def find_shingles(folder: Path, *, known: str, training: str) -> None:
    """Which of them occur in one part's training text."""
    texts = (document.text for document in read_documents(Path(training)))
    np.save(folder / "found.npy", found_shingles(np.load(known, mmap_mode="r"), texts))


def unite(folder: Path, *, known: str, found: list[str]) -> None:
    """Which of them occur anywhere in the training text."""
    together = np.zeros(len(np.load(known, mmap_mode="r")), dtype=bool)
    for path in found:
        together |= np.load(path)
    np.save(folder / "found.npy", together)


def drop_overlapping(folder: Path, *, held_out: str, known: str, found: str, most: float) -> None:
    """One part's held-out documents that are fit to measure with."""
    shingles, seen = np.load(known, mmap_mode="r"), np.load(found)
    with DocumentWriter(folder / HELD_OUT) as writer:
        for document in read_documents(Path(held_out)):
            share = overlap(document.text, shingles, seen)
            if not (math.isnan(share) or share > most):
                writer.append(document.text, document.source)
    _write_counts(folder, {HELD_OUT: writer})


def _write_counts(folder: Path, writers: Mapping[str, DocumentWriter]) -> None:
    counts = {name: [writer.documents, writer.bytes] for name, writer in writers.items()}
    (folder / _COUNTS).write_text(json.dumps(counts))


def _counts(folder: Path) -> dict[str, tuple[int, int]]:
    return {name: (count[0], count[1]) for name, count in json.loads((folder / _COUNTS).read_text()).items()}


def _selected(corpus: CorpusConfig, training: Path, held_out: Path, folder: Path) -> Selected:
    counts = _counts(folder)
    return Selected(corpus, training, held_out, folder / TALLY, counts[DOCUMENTS], counts[HELD_OUT])
