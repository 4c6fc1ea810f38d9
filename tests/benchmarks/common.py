"""What the benchmarks share: shards of real text, what they ran on, and the table they print."""

from __future__ import annotations

import os
import platform
import statistics
from importlib.metadata import version
from pathlib import Path

import numpy as np

from data_pipeline.prepare import prepare
from data_pipeline.recipe import CorpusConfig, PrepareConfig, TokenizerConfig
from data_pipeline.shard_reader import ShardSet


def prepare_shards(folder: Path, *, sequence_length: int, vocab_size: int) -> np.ndarray:
    """Shards of Python's standard library with their own tokenizer in `folder`/shards/text; their tokens, uint16."""
    recipe = PrepareConfig(
        output=str(folder / "shards"),
        sequence_length=sequence_length,
        tokenizer=TokenizerConfig(vocab_size=vocab_size, sample_bytes=500 * vocab_size),
        corpora=[CorpusConfig(name="text", sources=["{stdlib}/*.py", "{stdlib}/email/*.py"])],
    )
    prepare(recipe, lambda _: None)
    shards = ShardSet(folder / "shards" / "text")
    rows = shards.read(np.arange(shards.samples))
    return rows[:, :sequence_length].reshape(-1).astype(np.uint16)


def machine(*packages: str) -> str:
    """One line: cores, processor, and the versions of what took part."""
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{len(os.sched_getaffinity(0))} CPU cores ({cpu}), Python {platform.python_version()}, {versions}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def middle_and_spread(values: list[float], digits: int = 2) -> str:
    """`median (least-greatest)`."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, ["-" * width for width in widths], *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
