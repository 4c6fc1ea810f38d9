"""What `trestle prepare` found among pairs, as report.json and as pages for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.pairs.prepare.duplicates import Duplicates
from data_pipeline.pairs.prepare.encoding import PairSetResult
from data_pipeline.pairs.prepare.reading import Part
from data_pipeline.pairs.prepare.selecting import shown_pair
from data_pipeline.pairs.prepare.store import read_pairs
from data_pipeline.pairs.prepare.tally import Example, add_example
from data_pipeline.pairs.recipe import PairPrepareConfig
from data_pipeline.pairs.report import render_corpus, render_mix
from data_pipeline.shards import write_synced

if TYPE_CHECKING:
    from data_pipeline.pairs.prepare.pipeline import PairCorpusResult, PairPrepareResult


def report_data(
    config: PairPrepareConfig, result: PairPrepareResult, found: Duplicates, parts: Sequence[Part]
) -> dict[str, Any]:
    """The report as plain values; to be made while the phases' files are there."""
    total = sum(corpus.weight for corpus in result.corpora)
    shown = _kept_instead(result.corpora, config.max_pixels, found, parts)
    return {
        "kind": "image-text",
        "title": Path(config.output).name,
        "vocab_size": result.vocab_size,
        "tokenizer_sha256": result.tokenizer_sha256,
        "seconds": {name: round(seconds, 3) for name, seconds in result.seconds.items()},
        "corpora": [_corpus(corpus, corpus.weight / total, shown) for corpus in result.corpora],
        "duplicates": {
            "distance": config.deduplicate.distance,
            "copy_sizes": {str(size): groups for size, groups in found.copy_sizes.items()},
            "cluster_sizes": {str(size): groups for size, groups in found.cluster_sizes.items()},
        },
    }


def write_reports(output: Path, data: dict[str, Any]) -> None:
    """report.json and report.html for the mix, and a report.html in each corpus's folder."""
    write_synced(output / "report.json", (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())
    for corpus in data["corpora"]:
        write_synced(output / corpus["name"] / "report.html", render_corpus(data, corpus["name"]).encode())
    write_synced(output / "report.html", render_mix(data).encode())


def _kept_instead(
    corpora: Sequence[PairCorpusResult], max_pixels: int, found: Duplicates, parts: Sequence[Part]
) -> dict[int, dict[str, Any]]:
    """The pairs that are kept for those copies that are shown, by id."""
    drops = [drop for corpus in corpora for drop in corpus.tally.dropped.values()]
    wanted = sorted({example.of for drop in drops for example in drop.examples if example.of >= 0})
    owners = np.searchsorted(found.firsts, wanted, side="right") - 1
    shown = {}
    for owner in np.unique(owners).tolist():
        part = parts[owner].folder
        here = {pair - found.firsts[owner] for pair, its in zip(wanted, owners.tolist(), strict=True) if its == owner}
        for number, pair in read_pairs(part):
            if number in here:
                examples: list[Example] = []
                add_example(examples, 1, pair.key, pair.source, pair.caption, shown_pair(part, pair, max_pixels))
                shown[number + found.firsts[owner]] = _example(examples[0], {})
    return shown


def _example(example: Example, instead: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    told = {"source": example.source, "caption": example.caption, "picture": example.picture}
    return {**told, "kept": instead[example.of]} if example.of >= 0 else told


def _corpus(corpus: PairCorpusResult, share: float, instead: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    tally = corpus.tally
    assert corpus.training is not None
    return {
        "name": corpus.name,
        "weight": corpus.weight,
        "share": share,
        "files": tally.files,
        "funnel": [{"stage": stage, "pairs": pairs, "bytes": size} for stage, (pairs, size) in tally.kept.items()],
        "dropped": [
            {"reason": reason, "pairs": drop.pairs, "examples": [_example(e, instead) for e in drop.examples]}
            for reason, drop in sorted(tally.dropped.items(), key=lambda item: (-item[1].pairs, item[0]))
        ],
        "kept": [_example(example, {}) for example in tally.examples],
        "histograms": {name: dict(sorted(bins.items())) for name, bins in sorted(tally.histograms.items())},
        "training": _set(corpus.training),
        "validation": _set(corpus.validation) if corpus.validation else None,
    }


def _set(made: PairSetResult) -> dict[str, int]:
    return {"samples": made.samples, "bytes": made.bytes, "caption_bytes": made.caption_bytes}
