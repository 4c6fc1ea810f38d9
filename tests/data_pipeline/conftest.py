"""Shard sets made from the standard library's own sources, once for all tests of the room."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.config import DataConfig, ShardSource
from data_pipeline.prepare import PrepareResult, prepare
from data_pipeline.recipe import CorpusConfig, PrepareConfig, TokenizerConfig


def small_recipe(output: Path, **changes: object) -> PrepareConfig:
    """Two corpora of real sources, about 1 MB, with a training and a held-out part each."""
    settings: dict[str, object] = {
        "sequence_length": 32,
        "tokenizer": TokenizerConfig(vocab_size=600, sample_bytes=200_000),
        "validation_fraction": 0.15,
        "corpora": [
            CorpusConfig("network", ["{stdlib}/email/*.py", "{stdlib}/http/*.py"], 0.7),
            CorpusConfig("tools", ["{stdlib}/importlib/**/*.py", "{stdlib}/unittest/*.py"], 0.31),
        ],
    }
    return PrepareConfig(output=str(output), **{**settings, **changes})  # type: ignore[arg-type]


def mix_of(output: Path) -> DataConfig:
    """The data section of a prepared `small_recipe`."""
    return DataConfig(
        mix=[ShardSource(str(output / "network"), 0.7), ShardSource(str(output / "tools"), 0.31)],
        validation=[ShardSource(str(output / "network-validation")), ShardSource(str(output / "tools-validation"))],
    )


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PrepareResult]:
    """The folder of the shards (read-only for tests) and what prepare returned."""
    output = tmp_path_factory.mktemp("prepared") / "shards"
    return output, prepare(small_recipe(output), lambda line: None)


@pytest.fixture(scope="session")
def shards(prepared: tuple[Path, PrepareResult]) -> Path:
    return prepared[0]
