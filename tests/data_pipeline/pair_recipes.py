"""Recipes for pairs, small enough for tests, and what tests ask of the output."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.pairs.prepare import PairPrepareResult, prepare_pairs
from data_pipeline.pairs.reader import PairSet
from data_pipeline.pairs.recipe import CaptionTokenizerConfig, PairCorpusConfig, PairPrepareConfig


def pair_recipe(output: Path, *corpora: PairCorpusConfig, **changes: object) -> PairPrepareConfig:
    """A small recipe with a tokenizer that a few captions are enough for."""
    settings: dict[str, object] = {
        "tokenizer": CaptionTokenizerConfig("char", 400),
        "validation_fraction": 0.0,
        "pairs": list(corpora),
    }
    return PairPrepareConfig(output=str(output), **{**settings, **changes})  # type: ignore[arg-type]


def run(config: PairPrepareConfig) -> PairPrepareResult:
    return prepare_pairs(config, lambda line: None)


def dropped(result: PairPrepareResult, corpus: int = 0) -> dict[str, int]:
    """Reason -> pairs."""
    return {reason: drop.pairs for reason, drop in result.corpora[corpus].tally.dropped.items()}


def pairs_of(folder: Path) -> list[tuple[bytes, str]]:
    """Every pair of a shard set."""
    pairs = PairSet(folder)
    return [pairs.read(position) for position in range(len(pairs))]


def captions_of(folder: Path) -> list[str]:
    return [caption for _, caption in pairs_of(folder)]
