"""Near-duplicates among synthetic documents of real sentences: `python -m tests.benchmarks.dedup`.

Documents of 500 words are put together from the sentences of Python's language reference and of installed packages'
descriptions. About half of them are near-copies, in clusters of Zipfian sizes, with a random run of words replaced.
Prints documents per second of every phase, the peak memory, and the share of planted pairs that is found at each
similarity beside its theory. With `--peer-python`, an interpreter that has datatrove, its MinHash pipeline runs on a
slice of the same documents with as many workers, its word tokenizer replaced by `str.split`, which is faster than those
that it comes with.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

# Nothing of the product is imported here: this file is also run by an interpreter that has datatrove and not much else.

WORDS, SHINGLE_WORDS, PART = 500, 5, 20_000
SIMILARITIES = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0]


# -- documents ---------------------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """What the pipeline takes for words, written down independently."""
    return re.findall(r"[\u3000-\u9fff]|[^ !-/:-@\[-`{-~\u3000-\u9fff]+", " ".join(text.casefold().split()))


def shingles(text: str) -> set[tuple[str, ...]]:
    """Runs of five words; all words of a shorter text; of one without words, none."""
    found = words(text)
    return {tuple(found[i : i + SHINGLE_WORDS]) for i in range(max(1, len(found) - SHINGLE_WORDS + 1))} - {()}


@cache
def sentences() -> list[list[str]]:
    """Real sentences, each once, as tokens of one word each with the punctuation around it."""
    from importlib.metadata import distributions
    from pydoc_data.topics import topics

    packages = {package.metadata["Name"]: package.metadata["Description"] or "" for package in distributions()}
    texts = [*topics.values(), *(text for _, text in sorted(packages.items()))]
    split = (re.split(r"(?<=[.!?])\s+|\n\s*\n", text) for text in texts)
    tokens = ([token for token in sentence.split() if len(words(token)) == 1] for part in split for sentence in part)
    return [list(sentence) for sentence in dict.fromkeys(tuple(t) for t in tokens if 5 <= len(t) <= 40)]


def tokens(generator: random.Random, count: int = WORDS) -> list[str]:
    """`count` words of random sentences."""
    found: list[str] = []
    while len(found) < count:
        found += generator.choice(sentences())
    return found[:count]


def planted_pair(generator: random.Random, similarity: float) -> tuple[str, str]:
    """Two documents of 500 words whose shingle sets have about this Jaccard similarity: a common beginning."""
    one, count = tokens(generator), WORDS - SHINGLE_WORDS + 1
    common = round(2 * count * similarity / (1 + similarity))
    other = one[: common + SHINGLE_WORDS - 1] + tokens(generator) if common < count else one
    return " ".join(one), " ".join(other[:WORDS]).upper()


def document(number: int, documents: int) -> str:
    """The text of a document, a function of its number: half are near-copies of one of a few, by Zipf's law."""
    generator = random.Random(number)
    if generator.random() < 0.5:
        return " ".join(tokens(generator))
    clusters = max(1, documents // 20)
    copied = tokens(random.Random(f"cluster {int(clusters ** generator.random())}"))
    length = int(generator.random() ** 2 * 0.4 * WORDS)
    start = generator.randrange(WORDS - length)
    copied[start : start + length] = tokens(generator, length)
    return " ".join(copied)


def write_part(folder: Path, *, first: int, count: int, documents: int) -> None:
    """Task: a part of the collection."""
    from data_pipeline.document_file import DocumentWriter

    with DocumentWriter(folder / "documents.arrow") as writer:
        for number in range(first, first + count):
            writer.append(document(number, documents), str(number))


# -- our side ----------------------------------------------------------------------------------------------------------


@dataclass
class Processes:
    """A runner with worker processes; what it keeps is how long each phase took and how much memory it needed."""

    root: Path
    pool: ProcessPoolExecutor
    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[int, int] = field(default_factory=dict)

    def map(self, name: str, function: Callable[..., None], tasks: Sequence[Any]) -> list[Path]:
        began = time.perf_counter()
        folders = [self.root / name / f"{number:06d}" for number in range(len(tasks))]
        for folder in folders:
            folder.mkdir(parents=True)
        calls = [self.pool.submit(_call, function, f, t.arguments) for f, t in zip(folders, tasks, strict=True)]
        for call in calls:
            process, peak = call.result()
            self.peaks[process] = max(self.peaks.get(process, 0), peak)
        self.seconds[name] = time.perf_counter() - began
        return folders


def processes(workers: int) -> ProcessPoolExecutor:
    """Spawned ones: a forked one would count this process's memory as its own."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _call(function: Callable[..., None], folder: Path, arguments: dict[str, Any]) -> tuple[int, int]:
    function(folder, **arguments)
    return os.getpid(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def write_collection(runner: Processes, documents: int, part: int = PART) -> list[Path]:
    """The files of all parts."""
    from data_pipeline.prepare.runner import Task

    starts = range(0, documents, part)
    calls = [Task({"first": i, "count": min(part, documents - i), "documents": documents}) for i in starts]
    return [folder / "documents.arrow" for folder in runner.map("write", write_part, calls)]


def measure_phases(folder: Path, documents: int, workers: int) -> None:
    """Writes the collection and finds its duplicates in fresh processes, kernels compiled before."""
    from data_pipeline.dedup.config import DedupConfig
    from data_pipeline.dedup.find import Part, find_duplicates

    with processes(workers) as pool:
        files = write_collection(Processes(folder / "documents", pool), documents)
    with processes(workers) as pool:
        runner = Processes(folder / "work", pool)
        began = time.perf_counter()
        parts = [Part(file) for file in files]
        found = find_duplicates(runner, parts, DedupConfig(), exact=True, near=True, workers=workers)
        seconds = time.perf_counter() - began
    size = sum(file.stat().st_size for file in files)
    print(f"{documents:,} documents of {WORDS} words, {size / 1e9:.2f} GB compressed, {workers} workers")
    rows = [[name, f"{took:.1f}", f"{documents / took:,.0f}"] for name, took in runner.seconds.items()]
    print_table(["phase", "seconds", "documents/s"], [*rows, ["all", f"{seconds:.1f}", f"{documents / seconds:,.0f}"]])
    workers_peak = sum(runner.peaks.values()) / (1 << 20)
    own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    print(f"peak memory: {workers_peak:.2f} GiB in the workers, {own_peak:.2f} GiB in this process")
    copies = sum((size - 1) * groups for size, groups in found.copy_sizes.items())
    near = sum((size - 1) * groups for size, groups in found.cluster_sizes.items())
    print(f"dropped: {copies:,} exact copies, {near:,} near ones, the largest cluster {max(found.cluster_sizes):,}")
    print(f"pairs: {found.candidates:,} compared, {found.verified:,} verified")


def measure_signatures(documents: int) -> float:
    """Prints rates of one process; returns signatures per CPU-second, words and hashes included."""
    from data_pipeline.dedup.exact import text_keys
    from data_pipeline.dedup.minhash import hash_functions, signatures
    from data_pipeline.dedup.shingles import shingle

    data, starts = as_utf8([document(number, documents) for number in range(documents)])
    wanted, functions = np.ones(documents, dtype=bool), hash_functions(1, 128)
    shingled = shingle(data, starts, wanted, SHINGLE_WORDS)
    both = rate(lambda: signatures(shingle(data, starts, wanted, SHINGLE_WORDS), functions), documents)
    rows = {
        "words and shingles": rate(lambda: shingle(data, starts, wanted, SHINGLE_WORDS), documents),
        "signatures of shingles": rate(lambda: signatures(shingled, functions), documents),
        "both": both,
        "hashes for exact copies": rate(lambda: text_keys(shingled), documents),
    }
    print_table(["one process", "documents per CPU-s"], [[name, f"{value:,.0f}"] for name, value in rows.items()])
    return both


def as_utf8(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The texts' bytes end to end, and where each begins."""
    encoded = [text.encode() for text in texts]
    starts = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), starts


def rate(work: Callable[[], object], documents: int, rounds: int = 7) -> float:
    """Documents per CPU-second, median of some rounds after one that does not count."""
    work()
    taken = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return documents / statistics.median(taken)


def measure_recall(folder: Path, pairs: int, background: int) -> None:
    """Plants pairs of known similarity among other documents and prints how many are found."""
    from data_pipeline.dedup.candidates import unpack
    from data_pipeline.dedup.config import DedupConfig
    from data_pipeline.dedup.find import Part, find_duplicates
    from data_pipeline.document_file import DocumentWriter

    generator, config = random.Random("pairs"), DedupConfig()
    texts = [" ".join(tokens(generator)) for _ in range(background)]
    texts += [text for similarity in SIMILARITIES for _ in range(pairs) for text in planted_pair(generator, similarity)]
    with DocumentWriter(folder / "documents.arrow") as writer:
        for number, text in enumerate(texts):
            writer.append(text, str(number))
    with processes(1) as pool:
        runner = Processes(folder / "work", pool)
        found = find_duplicates(runner, [Part(folder / "documents.arrow")], config, exact=False, near=True, workers=1)

    def ids(files: Sequence[Path]) -> set[tuple[int, int]]:
        larger, smaller = unpack(np.concatenate([np.load(file) for file in files]))
        return set(zip(smaller.tolist(), larger.tolist(), strict=True))

    candidates, verified = ids(found.candidate_files), ids(found.verified_files)
    rows = []
    for number, similarity in enumerate(SIMILARITIES):
        planted = [(i, i + 1) for i in range(background + 2 * number * pairs, background + 2 * (number + 1) * pairs, 2)]
        exact = [jaccard(texts[i], texts[j]) for i, j in planted]
        theory = statistics.mean(1 - (1 - value**config.rows) ** config.bands for value in exact)
        above = [pair for pair, value in zip(planted, exact, strict=True) if value >= config.threshold]
        recall = f"{len(verified.intersection(above)) / len(above):.3f}" if above else ""
        hit = len(candidates.intersection(planted)) / pairs
        rows.append([f"{similarity:.2f}", f"{theory:.3f}", f"{hit:.3f}", str(len(above)), recall])
    print(f"{pairs} planted pairs at each similarity among {background:,} other documents")
    print_table(
        ["Jaccard", "candidates, theory", "candidates", f"at least {config.threshold}", "of these verified"], rows
    )
    right = sum(jaccard(texts[i], texts[j]) >= config.threshold for i, j in verified)
    print(f"precision of {len(verified):,} verified pairs, by sets of words: {right / len(verified):.4f}")


def jaccard(one: str, other: str) -> float:
    """Of the sets of shingles."""
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


# -- the other side ----------------------------------------------------------------------------------------------------


def compare(folder: Path, python: str, documents: int, workers: int, signature_rate: float) -> None:
    """Runs datatrove and our side on the same documents and prints both."""
    (folder / "lines").mkdir()
    texts = [document(number, documents) for number in range(documents)]
    for number in range(2 * workers):
        lines = [json.dumps({"id": str(i), "text": texts[i]}) for i in range(number, documents, 2 * workers)]
        (folder / "lines" / f"{number:03d}.jsonl").write_text("\n".join(lines))
    command = [python, "-P", __file__, "--be-peer", str(folder), "--workers", str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"datatrove failed: {done.stderr[-2000:]}")
    peer = json.loads(done.stdout.splitlines()[-1])
    rows = [[name, f"{took:.1f}", f"{documents / took:,.0f}"] for name, took in peer["seconds"].items()]
    total = sum(peer["seconds"].values())
    print_table(
        ["datatrove's phase", "seconds", "documents/s"], [*rows, ["all", f"{total:.1f}", f"{documents / total:,.0f}"]]
    )
    print(
        f"signatures per CPU-second, words and hashes included: datatrove {peer['rate']:,.0f}, "
        f"ours {signature_rate:,.0f}: {signature_rate / peer['rate']:.0f} times"
    )


def be_peer(folder: Path, workers: int) -> None:
    """datatrove's MinHash pipeline over the JSON lines in the folder; prints what it took as JSON."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupCluster, MinhashDedupFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Split(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    config = MinhashConfig(n_grams=SHINGLE_WORDS, num_buckets=16, hashes_per_bucket=8)
    reader = JsonlReader(str(folder / "lines"))
    sign = MinhashDedupSignature(str(folder / "signatures"), config, language=Split())
    texts = [json.loads(line)["text"] for line in (folder / "lines" / "000.jsonl").read_text().splitlines()[:1000]]
    signatures_rate = rate(lambda: [sign.get_signature(sign.get_shingles(text)) for text in texts], len(texts), 3)
    buckets = MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"), config=config)
    cluster = MinhashDedupCluster(str(folder / "buckets"), str(folder / "removed"), config=config)
    keep = [reader, MinhashDedupFilter(str(folder / "removed")), JsonlWriter(str(folder / "kept"))]
    seconds = {}
    for name, pipeline, tasks in (
        ("signatures", [reader, sign], 2 * workers),
        ("buckets", [buckets], config.num_buckets),
        ("cluster", [cluster], 1),
        ("filter", keep, 2 * workers),
    ):
        began = time.perf_counter()
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=workers, logging_dir=str(folder / "logs" / name)).run()
        seconds[name] = time.perf_counter() - began
    print(json.dumps({"rate": signatures_rate, "seconds": seconds}))


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """The benchmarks' table."""
    from tests.benchmarks.common import print_table

    print_table(head, rows)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=400, help="planted pairs at each similarity")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter that can import datatrove")
    parser.add_argument("--peer-documents", type=int, default=50_000)
    parser.add_argument("--quick", action="store_true", help="few documents, only to see that it runs")
    parser.add_argument("--be-peer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be_peer:
        be_peer(options.be_peer, options.workers)
        return
    if options.quick:
        options.documents, options.pairs, options.peer_documents = 4_000, 20, 1_000
    from tests.benchmarks.common import machine

    print(machine("numba", "numpy", "pyarrow"), end="\n\n")
    signature_rate = measure_signatures(min(5_000, options.documents))
    with tempfile.TemporaryDirectory() as folder:
        measure_recall(Path(folder), options.pairs, min(20_000, options.documents))
    with tempfile.TemporaryDirectory() as folder:
        measure_phases(Path(folder), options.documents, options.workers)
    probe = [options.peer_python, "-c", "import datatrove"]
    if not shutil.which(probe[0]) or subprocess.run(probe, capture_output=True, check=False).returncode:
        print(f"{options.peer_python} has no datatrove: not compared (--peer-python names another interpreter)")
        return
    with tempfile.TemporaryDirectory() as folder:
        measure_phases(Path(folder), options.peer_documents, options.workers)
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), options.peer_python, options.peer_documents, options.workers, signature_rate)


if __name__ == "__main__":
    main()
