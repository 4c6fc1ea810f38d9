"""What `trestle prepare` found, as report.json and as pages for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.dedup.find import Duplicates
from data_pipeline.document_file import read_batches
from data_pipeline.documents import Tally
from data_pipeline.prepare.check import training_tokens
from data_pipeline.prepare.encoding import ShardSetResult
from data_pipeline.prepare.reading import Part
from data_pipeline.prepare.scoring import REPORT
from data_pipeline.recipe import PrepareConfig
from data_pipeline.report import render_corpus, render_mix
from data_pipeline.shards import write_synced

if TYPE_CHECKING:
    from data_pipeline.prepare.pipeline import CorpusResult, PrepareResult

_EXCERPT = 800


@dataclass
class Findings:
    """What the phases say beside the tallies."""

    classifier: Path | None = None
    score_tallies: dict[Path, Path] = field(default_factory=dict)
    duplicates: Duplicates | None = None
    duplicate_parts: list[Part] = field(default_factory=list)


def report_data(config: PrepareConfig, result: PrepareResult, findings: Findings) -> dict[str, Any]:
    """The report as plain values; to be made while the findings' files are there."""
    length = training_tokens(config)
    total = sum(corpus.weight for corpus in result.corpora)
    return {
        "title": Path(config.output).name,
        "sequence_length": config.sequence_length,
        "vocab_size": result.vocab_size,
        "tokenizer_sha256": result.tokenizer_sha256,
        "training_tokens": length,
        "seconds": {name: round(seconds, 3) for name, seconds in result.seconds.items()},
        "corpora": [
            _corpus(corpus, corpus.weight / total, length, config.sequence_length) for corpus in result.corpora
        ],
        "duplicates": _duplicates(config, findings),
        "classifier": _classifier(findings.classifier) if findings.classifier else None,
    }


def write_reports(output: Path, data: dict[str, Any]) -> None:
    """report.json and report.html for the mix, and a report.html in each corpus's folder."""
    write_synced(output / "report.json", (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())
    for corpus in data["corpora"]:
        write_synced(output / corpus["name"] / "report.html", render_corpus(data, corpus["name"]).encode())
    write_synced(output / "report.html", render_mix(data).encode())


def _corpus(corpus: CorpusResult, share: float, training_length: int, sequence_length: int) -> dict[str, Any]:
    tally: Tally = corpus.tally
    training = corpus.training
    assert training is not None
    return {
        "name": corpus.name,
        "weight": corpus.weight,
        "share": share,
        "files": tally.files,
        "funnel": [
            {"stage": stage, "documents": documents, "bytes": size} for stage, (documents, size) in tally.kept.items()
        ],
        "dropped": [
            {
                "reason": reason,
                "documents": drop.documents,
                "bytes": drop.bytes,
                "examples": [{"source": source, "excerpt": excerpt} for _, source, excerpt in drop.examples],
            }
            for reason, drop in sorted(tally.dropped.items(), key=lambda item: (-item[1].documents, item[0]))
        ],
        "histograms": {name: dict(sorted(bins.items())) for name, bins in sorted(tally.histograms.items())},
        "held_out": {
            "documents": corpus.validation.documents if corpus.validation else 0,
            "dropped_for_overlap": corpus.held_out_dropped,
        },
        "training": _set(training),
        "validation": _set(corpus.validation) if corpus.validation else None,
        "epochs": share * training_length / (training.samples * sequence_length),
    }


def _set(made: ShardSetResult) -> dict[str, int]:
    return {"documents": made.documents, "bytes": made.bytes, "tokens": made.tokens, "samples": made.samples}


def _classifier(trained: Path) -> dict[str, Any]:
    found = json.loads((trained / REPORT).read_text())
    return {**found, "roc": [[wrong, right] for wrong, right, _ in found["roc"]], "kept_share": found["kept_raw"]}


def _duplicates(config: PrepareConfig, findings: Findings) -> dict[str, Any] | None:
    found = findings.duplicates
    if found is None:
        return None
    shown = _excerpts(
        findings.duplicate_parts, sorted({n for kept, dropped, _ in found.pairs for n in (kept, dropped)})
    )
    return {
        "threshold": config.deduplicate.threshold,
        "cluster_sizes": {str(size): clusters for size, clusters in sorted(found.cluster_sizes.items())},
        "pairs": [
            {"jaccard": jaccard, "kept": shown[kept], "dropped": shown[dropped]}
            for kept, dropped, jaccard in found.pairs
        ],
    }


def _excerpts(parts: Sequence[Part], wanted: Sequence[int]) -> dict[int, dict[str, str]]:
    """The documents with these numbers, counted over all parts."""
    left = set(wanted)
    found: dict[int, dict[str, str]] = {}
    first = 0
    for part in parts:
        if not left:
            break
        for batch in read_batches(part.documents):
            here = [number for number in left if first <= number < first + len(batch)]
            if here:
                texts, sources = batch.texts, batch.sources
                for number in here:
                    excerpt, source = texts[number - first][:_EXCERPT], sources[number - first]
                    found[number] = {"corpus": part.corpus.name, "source": source, "excerpt": excerpt}
                left.difference_update(here)
            first += len(batch)
    return found
