"""What tests of prepare ask of its output."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from data_pipeline.prepare import PrepareResult, prepare
from data_pipeline.recipe import PrepareConfig
from data_pipeline.shard_reader import ShardSet
from data_pipeline.tokenizer import Tokenizer


def run(config: PrepareConfig) -> PrepareResult:
    return prepare(config, lambda line: None)


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def text_of(shard_set: ShardSet, tokenizer: Tokenizer) -> list[str]:
    """The documents, back from the packed samples (the last may be cut short)."""
    rows = shard_set.read(np.arange(len(shard_set)))
    tokens = np.append(rows[:, :-1].ravel(), rows[-1, -1]).astype(np.int64)
    parts = np.split(tokens, np.flatnonzero(tokens == tokenizer.eod_id) + 1)
    return [tokenizer.decode(part[part != tokenizer.eod_id].tolist()) for part in parts if len(part)]


def without_reports(files: dict[str, str]) -> dict[str, str]:
    """All but the reports, which hold times."""
    return {name: content for name, content in files.items() if "report." not in name}
