"""Stream throughput against numpy memmap: `python -m tests.benchmarks.stream`.

Both sides read random samples of 2,049 tokens (uint16, page cache warm) and hand over int64 batches of 512. The peer is
the usual way: one flat file, `numpy.memmap`, a random start for each sample, no checks. Ours adds the weighted mix, the
per-epoch permutation and the CRC of every member the first time it is touched; a remote set is read from the node's
cache, a member at a time. Rounds alternate; medians of CPU time.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np

from data_pipeline.config import CacheConfig, DataConfig, ShardSource
from data_pipeline.shard_reader import ShardSet
from data_pipeline.shards import ShardWriter, build_shards
from data_pipeline.stream import Stream

SEQUENCE_LENGTH, BATCH, VOCABULARY = 2048, 512, 50_000


def write_set(directory: Path, tokens: np.ndarray) -> None:
    """A shard set of the given tokens, uint16 [n]."""
    directory.mkdir()
    writer = ShardWriter(
        directory,
        name=directory.name,
        sequence_length=SEQUENCE_LENGTH,
        dtype=np.dtype("<u2"),
        vocab_size=VOCABULARY,
        eod_id=1,
        tokenizer_sha256="0",
        members_per_tar=64,
    )
    samples = (len(tokens) - 1) // SEQUENCE_LENGTH
    view = np.lib.stride_tricks.sliding_window_view(tokens, SEQUENCE_LENGTH + 1)[::SEQUENCE_LENGTH][:samples]
    build_shards(writer, (view[i : i + writer.rows] for i in range(0, samples, writer.rows)))
    writer.finish(tokens=len(tokens), documents=1, bytes=1, counts=np.bincount(tokens, minlength=VOCABULARY))


def memmap_batch(flat: np.memmap, generator: np.random.Generator) -> np.ndarray:
    """The peer: a batch of random windows, int64 [512, 2049]."""
    starts = generator.integers(0, len(flat) - SEQUENCE_LENGTH, BATCH).tolist()
    out = np.empty((BATCH, SEQUENCE_LENGTH + 1), dtype=np.int64)
    for row, start in zip(out, starts, strict=True):
        row[:] = flat[start : start + SEQUENCE_LENGTH + 1]
    return out


def rate(work: Callable[[], object], batches: int) -> float:
    """Million tokens per CPU-second."""
    start = time.process_time()
    for _ in range(batches):
        work()
    return batches * BATCH * (SEQUENCE_LENGTH + 1) / (time.process_time() - start) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=256, help="size of the data on each side")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=40, help="batches a round")
    parser.add_argument("--quick", action="store_true", help="little data and one round, only to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.megabytes, options.rounds, options.batches = 8, 1, 2
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), options.megabytes, options.rounds, options.batches)


def compare(folder: Path, megabytes: int, rounds: int, batches: int) -> None:
    """Writes the data, alternates the sides, prints every median."""
    generator = np.random.default_rng(1)
    tokens = generator.integers(0, VOCABULARY, megabytes * 500_000, dtype=np.uint16)
    tokens.tofile(folder / "flat.bin")
    flat = np.memmap(folder / "flat.bin", dtype=np.uint16, mode="r")
    for name, part in (("large", tokens[: len(tokens) * 3 // 4]), ("small", tokens[len(tokens) * 3 // 4 :])):
        write_set(folder / name, part)
    config = DataConfig(mix=[ShardSource(str(folder / "large"), 0.6), ShardSource(str(folder / "small"), 0.41)])

    windowed = Stream(dataclasses.replace(config, shuffle="windowed"), seed=1)
    cached = Stream(
        dataclasses.replace(config, mix=in_memory(folder), cache=CacheConfig(str(folder / "cache"))), seed=1
    )
    plain = ShardSet(folder / "large")
    plain.verify()  # so that every member counts as checked
    state = {"step": 0}

    def stream_batch(stream: Stream) -> object:
        state["step"] += 1
        return stream.batch(state["step"] * BATCH, BATCH)

    warm = Stream(config, seed=1)
    for stream in (warm, windowed, cached):
        rate(lambda: stream_batch(stream), 4 * megabytes * 1_000_000 // (BATCH * 2 * SEQUENCE_LENGTH))  # noqa: B023
    sides: dict[str, Callable[[], float]] = {
        "numpy memmap, random": lambda: rate(lambda: memmap_batch(flat, generator), batches),
        "shards, plain random reading": lambda: rate(
            lambda: plain.read(generator.integers(0, len(plain), BATCH)).astype(np.int64), batches
        ),
        "stream: mix, shuffle, CRCs done": lambda: rate(lambda: stream_batch(warm), batches),
        "stream: windowed shuffle, CRCs done": lambda: rate(lambda: stream_batch(windowed), batches),
        "stream: remote, in the cache, CRCs done": lambda: rate(lambda: stream_batch(cached), batches),
        "stream: mix, shuffle, every CRC in this round": lambda: first_epoch(config, stream_batch),
    }
    results: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            results[name].append(measure())
    peer = statistics.median(results["numpy memmap, random"])
    for name, rates in results.items():
        middle = statistics.median(rates)
        spread = f"{min(rates):.0f}-{max(rates):.0f}"
        print(f"{name:48s} {middle:7.0f} Mtok per CPU-s ({spread}), {middle / peer:.2f} of memmap")
    start = time.perf_counter()
    for _ in range(100):
        warm.locate(np.arange(10**11, 10**11 + BATCH))
    print(f"mix and permutation of {BATCH} samples: {(time.perf_counter() - start) * 10:.2f} ms")


def in_memory(folder: Path) -> list[ShardSource]:
    """The same mix by URL."""
    files = fsspec.filesystem("memory")
    for name in ("large", "small"):
        files.put(str(folder / name), f"/benchmark/{name}", recursive=True)
    return [ShardSource("memory://benchmark/large", 0.6), ShardSource("memory://benchmark/small", 0.41)]


def first_epoch(config: DataConfig, stream_batch: Callable[[Stream], object]) -> float:
    """A fresh stream read for about one epoch, so that every member is checked on the way."""
    fresh = Stream(config, seed=1)
    samples = sum(ShardSet(source.shards).samples for source in config.mix)
    return rate(lambda: stream_batch(fresh), samples // BATCH)


if __name__ == "__main__":
    main()
