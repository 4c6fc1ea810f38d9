"""Small shard sets of random tokens, written as `trestle prepare` writes them, but with members of a few samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from data_pipeline.config import DataConfig, ShardSource
from data_pipeline.shards import ShardWriter, build_shards

LENGTH = 8
"""Tokens of a sample."""

SIZES = {"one": 1, "few": 7, "some": 50, "more": 203, "lots": 997}
"""Shard sets of `write_sets`, and their samples."""


def write_set(
    directory: Path,
    samples: int,
    *,
    rows: int = 4,
    members_per_tar: int = 3,
    seed: int = 0,
    length: int = LENGTH,
    vocabulary: int = 1000,
    tokenizer_sha256: str = "0",
) -> np.ndarray:
    """A shard set named after its folder, of members of `rows` samples; its tokens [samples, length + 1]."""
    tokens = np.random.default_rng([seed, samples]).integers(0, vocabulary, (samples, length + 1)).astype("<u2")
    directory.mkdir(parents=True)
    with patch("data_pipeline.shards.MEMBER_BYTES", rows * (length + 1) * 2):
        writer = ShardWriter(
            directory,
            name=directory.name,
            sequence_length=length,
            dtype=np.dtype("<u2"),
            vocab_size=vocabulary,
            eod_id=1,
            tokenizer_sha256=tokenizer_sha256,
            members_per_tar=members_per_tar,
        )
    assert writer.rows == rows
    build_shards(writer, (tokens[i : i + rows] for i in range(0, samples, rows)))
    counts = np.bincount(tokens.ravel(), minlength=vocabulary)
    writer.finish(tokens=samples * length + 1, documents=1, bytes=samples * length, counts=counts)
    return tokens


def write_sets(folder: Path) -> Path:
    """Shard sets of the SIZES, each with members of another number of samples: 4 and up."""
    for number, (name, samples) in enumerate(SIZES.items()):
        write_set(folder / name, samples, rows=4 + number)
    return folder


def rewritten(config: DataConfig, **changes: Any) -> DataConfig:
    """A copy with other values."""
    return dataclasses.replace(config, **changes)


def mix(folder: Path, **weights: float) -> DataConfig:
    """The data section with shard sets of `folder` and their weights."""
    return DataConfig(mix=[ShardSource(str(folder / name), weight) for name, weight in weights.items()])


def flip_a_bit(directory: Path, member: int) -> None:
    """Damage one member's data where it lies."""
    tar, offset, _, _ = np.load(directory / "index.npy")[member].tolist()
    path = directory / f"{tar:05d}.tar"
    content = bytearray(path.read_bytes())
    content[offset + 3] ^= 4
    path.write_bytes(content)
