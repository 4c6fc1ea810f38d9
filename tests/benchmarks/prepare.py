"""`trestle prepare` end to end on synthetic documents: `python -m tests.benchmarks.prepare`.

The documents are those of the benchmark `dedup`: 500 words of real sentences, half of them near-copies in clusters of
Zipfian sizes, as JSON lines. Prints documents per second of every phase and overall, and the peak memory of all
processes together; kills nothing and compares with nothing: `dedup` has the peer.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import yaml

from tests.benchmarks.common import machine, print_table
from tests.benchmarks.dedup import document

_FILE = 10_000


def write_lines(path: Path, first: int, count: int, documents: int) -> int:
    """A file of documents; its size in bytes."""
    with open(path, "w") as file:
        for number in range(first, first + count):
            file.write(json.dumps({"text": document(number, documents)}) + "\n")
    return path.stat().st_size


class PeakMemory:
    """Resident memory of a process and all its children, watched while they run."""

    def __init__(self, process: psutil.Popen) -> None:
        self.bytes = 0
        self._process = process
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while self._process.poll() is None:
            total = 0
            for process in [self._process, *self._process.children(recursive=True)]:
                try:
                    memory = process.memory_full_info()
                    total += memory.uss
                except psutil.Error:
                    continue
            self.bytes = max(self.bytes, total)
            time.sleep(0.5)  # a sample of the memory twice a second; no event tells of a peak

    def join(self) -> None:
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--quick", action="store_true", help="few documents, only to see that it runs")
    options = parser.parse_args()
    documents = 4_000 if options.quick else options.documents
    print(machine("numba", "numpy", "pyarrow", "sentencepiece", "ray"), end="\n\n")
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), documents, options.vocab_size)


def measure(folder: Path, documents: int, vocab_size: int) -> None:
    """Writes the documents, prepares them, prints."""
    (folder / "lines").mkdir()
    with ProcessPoolExecutor(2) as pool:
        starts = range(0, documents, _FILE)
        calls = [
            pool.submit(write_lines, folder / "lines" / f"{i:09d}.jsonl", i, min(_FILE, documents - i), documents)
            for i in starts
        ]
        size = sum(call.result() for call in calls)
    recipe = {
        "output": str(folder / "shards"),
        "sequence_length": 2048,
        "validation_fraction": 0.0,
        "tokenizer": {"vocab_size": vocab_size},
        "corpora": [
            {
                "name": "lines",
                "sources": [str(folder / "lines" / "*.jsonl")],
                "stages": ["clean", "deduplicate", "fuzzy_deduplicate"],
            }
        ],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    began = time.perf_counter()
    process = psutil.Popen([sys.executable, "-m", "launcher", "prepare", str(folder / "recipe.yaml")])
    memory = PeakMemory(process)
    if process.wait():
        raise SystemExit("prepare failed")
    took = time.perf_counter() - began
    memory.join()
    report = json.loads((folder / "shards" / "report.json").read_text())
    seconds = report["seconds"]
    rows = [[name, f"{s:.1f}", f"{documents / s:,.0f}"] for name, s in seconds.items() if s >= 0.05]
    tokenising = sum(seconds.get(n, 0) for n in ("sample for the tokenizer", "tokenizer", "encode", "pack"))
    before = sum(seconds.values()) - tokenising
    rows.append(["all before the tokenizer", f"{before:.1f}", f"{documents / before:,.0f}"])
    rows.append(["the whole command", f"{took:.1f}", f"{documents / took:,.0f}"])
    print(f"\n{documents:,} documents, {size / 1e9:.2f} GB of JSON lines")
    print_table(["phase", "seconds", "documents/s"], rows)
    kept = report["corpora"][0]["funnel"][-1]["documents"]
    print(f"kept {kept:,}; peak memory of all processes, Ray's included: {memory.bytes / (1 << 30):.2f} GiB")


if __name__ == "__main__":
    main()
