"""The first phase: files → the stages that look at one document at a time → documents on disk, part by part."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline.document_file import DocumentWriter
from data_pipeline.documents import Document, StageFunction, Tally, logarithmic_bin, utf8_length
from data_pipeline.errors import BadCorpus
from data_pipeline.prepare.runner import Runner, Task
from data_pipeline.recipe import LATER_STAGES, CorpusConfig, FilterConfig, PrepareConfig, from_plain
from data_pipeline.sources import SourceFile, find_files, read_documents
from data_pipeline.stages.c4 import c4
from data_pipeline.stages.cleaning import clean
from data_pipeline.stages.extraction import extraction
from data_pipeline.stages.gopher import gopher
from data_pipeline.stages.language import language
from data_pipeline.stages.personal_data import personal_data
from data_pipeline.stages.repetition import repetition

DOCUMENTS = "documents.arrow"
TALLY = "tally.json"

STAGES: dict[str, Callable[[FilterConfig], StageFunction]] = {
    "extract": lambda filters: extraction(filters.extract),
    "clean": lambda filters: clean,
    "language": lambda filters: language(filters.language),
    "gopher": lambda filters: gopher(filters.gopher),
    "repetition": lambda filters: repetition(filters.repetition),
    "c4": lambda filters: c4(filters.c4),
    "personal_data": lambda filters: personal_data(filters.personal_data),
}


@dataclass(frozen=True)
class Part:
    """Some of a corpus's documents: what one task works on."""

    corpus: CorpusConfig
    documents: Path
    tally: Path


def read_corpora(runner: Runner, config: PrepareConfig, corpora: Sequence[CorpusConfig]) -> list[Part]:
    """Reads the corpora and applies their early stages. Raises BadConfig, BadCorpus."""
    files = [located(config, corpus.sources, corpus.exclude, corpus.name) for corpus in corpora]
    if any("decontaminate" in corpus.stages for corpus in corpora):  # so that a mistake is known now
        located(config, config.decontaminate.evaluation_sets, [], "decontaminate.evaluation_sets")
    parts = [_read(runner, config, corpus, own) for corpus, own in zip(corpora, files, strict=True)]
    return [part for of_corpus in parts for part in of_corpus]


def _read(runner: Runner, config: PrepareConfig, corpus: CorpusConfig, files: Sequence[SourceFile]) -> list[Part]:
    stages = [stage for stage in corpus.stages if stage not in LATER_STAGES]
    shared = {
        "corpus": corpus.name,
        "text_field": corpus.text_field,
        "separator": corpus.separator,
        "stages": stages,
        "filters": asdict(corpus.filters or config.filters),
        "damaged_files": config.damaged_files,
        "max_document_bytes": config.max_document_bytes,
    }
    groups = _groups(files, config.part_bytes)
    tasks = [
        Task({"files": [asdict(file) for file in group], **shared}, weight=sum(file.size for file in group))
        for group in groups
    ]
    folders = runner.map(f"read {corpus.name}", read_part, tasks)
    return [Part(corpus, folder / DOCUMENTS, folder / TALLY) for folder in folders]


def located(config: PrepareConfig, sources: Sequence[str], exclude: Sequence[str], name: str) -> list[SourceFile]:
    """The files of sources, under names that a worker in another folder understands; never those of the output.

    Raises BadConfig, BadCorpus.
    """
    own = os.path.realpath(config.output) + os.sep
    found = []
    for file in find_files(sources, exclude, name):
        if "://" in file.path:
            found.append(file)
        elif not os.path.realpath(file.path).startswith(own):
            found.append(replace(file, path=os.path.abspath(file.path)))
    if not found:
        raise BadCorpus(f"corpus {name}: all that its sources name lies in the output folder {config.output}")
    return found


def read_part(
    folder: Path,
    *,
    corpus: str,
    files: list[dict[str, Any]],
    text_field: str,
    separator: str | None,
    stages: list[str],
    filters: dict[str, Any],
    damaged_files: Any,
    max_document_bytes: int,
) -> None:
    """One part of a corpus. corpus: its name, so that two corpora with the same sources are two tasks."""
    tally = Tally()
    thresholds = from_plain(FilterConfig, filters)
    read = read_documents(
        [SourceFile(**file) for file in files],
        tally,
        text_field=text_field,
        damaged_files=damaged_files,
        max_document_bytes=max_document_bytes,
    )
    if separator is not None:
        read = _cut(read, separator)
    documents = apply_stages(read, [(name, STAGES[name](thresholds)) for name in stages], tally)
    with DocumentWriter(folder / DOCUMENTS) as writer:
        for document in documents:
            if document.html and "extract" not in stages:
                tally.observe("not extracted", "HTML")
            tally.observe("length", logarithmic_bin(utf8_length(document.text)))
            writer.append(document.text, document.source)
    write_tally(folder / TALLY, tally)


def apply_stages(
    documents: Iterable[Document], stages: Sequence[tuple[str, StageFunction]], tally: Tally
) -> Iterator[Document]:
    """The documents that are left after all stages; the tally counts what enters and what leaves each."""
    for name in ("read", *(name for name, _ in stages)):
        tally.kept.setdefault(name, [0, 0])  # in this order, also those that nothing reaches
    chain = _counted(documents, "read", tally)
    for name, stage in stages:
        chain = _counted(stage(chain, tally), name, tally)
    return chain


def write_tally(path: Path, tally: Tally) -> None:
    path.write_text(json.dumps(tally.to_json(), ensure_ascii=False))


def read_tally(path: Path) -> Tally:
    return Tally.from_json(json.loads(path.read_text()))


def _counted(documents: Iterable[Document], stage: str, tally: Tally) -> Iterator[Document]:
    for document in documents:
        tally.keep(stage, document)
        yield document


def _cut(documents: Iterable[Document], separator: str) -> Iterator[Document]:
    for document in documents:
        for number, text in enumerate(document.text.split(separator), start=1):
            if text.strip():
                yield Document(text, f"{document.source}#{number}", html=document.html)


def _groups(files: Sequence[SourceFile], part_bytes: int) -> Iterator[list[SourceFile]]:
    """Neighbouring files together, until they make a part."""
    group: list[SourceFile] = []
    size = 0
    for file in files:
        if group and size + file.size > part_bytes:
            yield group
            group, size = [], 0
        group.append(file)
        size += file.size
    if group:
        yield group
