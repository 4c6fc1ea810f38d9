"""What `trestle prepare` found among pairs, as report.json and as pages for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.pairs.prepare.duplicates import Duplicates
from data_pipeline.pairs.prepare.encoding import PairSetResult
from data_pipeline.pairs.prepare.reading import Part
from data_pipeline.pairs.recipe import PairPrepareConfig
from data_pipeline.shards import write_synced

if TYPE_CHECKING:
    from data_pipeline.pairs.prepare.pipeline import PairCorpusResult, PairPrepareResult


def report_data(
    config: PairPrepareConfig, result: PairPrepareResult, found: Duplicates, parts: Sequence[Part]
) -> dict[str, Any]:
    """The report as plain values; to be made while the phases' files are there."""
    total = sum(corpus.weight for corpus in result.corpora)
    return {
        "kind": "image-text",
        "title": Path(config.output).name,
        "vocab_size": result.vocab_size,
        "tokenizer_sha256": result.tokenizer_sha256,
        "seconds": {name: round(seconds, 3) for name, seconds in result.seconds.items()},
        "corpora": [_corpus(corpus, corpus.weight / total) for corpus in result.corpora],
        "duplicates": {
            "distance": config.deduplicate.distance,
            "copy_sizes": {str(size): groups for size, groups in found.copy_sizes.items()},
            "cluster_sizes": {str(size): groups for size, groups in found.cluster_sizes.items()},
        },
    }


def write_reports(output: Path, data: dict[str, Any]) -> None:
    """report.json and report.html."""
    write_synced(output / "report.json", (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())


def _corpus(corpus: PairCorpusResult, share: float) -> dict[str, Any]:
    tally = corpus.tally
    assert corpus.training is not None
    return {
        "name": corpus.name,
        "weight": corpus.weight,
        "share": share,
        "files": tally.files,
        "funnel": [{"stage": stage, "pairs": pairs, "bytes": size} for stage, (pairs, size) in tally.kept.items()],
        "dropped": [
            {"reason": reason, "pairs": drop.pairs, "examples": [asdict(example) for example in drop.examples]}
            for reason, drop in sorted(tally.dropped.items(), key=lambda item: (-item[1].pairs, item[0]))
        ],
        "kept": [asdict(example) for example in tally.examples],
        "histograms": {name: dict(sorted(bins.items())) for name, bins in sorted(tally.histograms.items())},
        "training": _set(corpus.training),
        "validation": _set(corpus.validation) if corpus.validation else None,
    }


def _set(made: PairSetResult) -> dict[str, int]:
    return {"samples": made.samples, "bytes": made.bytes, "caption_bytes": made.caption_bytes}
