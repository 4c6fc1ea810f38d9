"""Kept documents → a tokenizer → tokens, part by part → packed samples → shard sets."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.document_file import DocumentWriter, read_batches, read_documents
from data_pipeline.errors import BadCorpus, BadTokenizer
from data_pipeline.packing import Packer, token_dtype
from data_pipeline.prepare.reading import DOCUMENTS
from data_pipeline.prepare.runner import Runner, Task
from data_pipeline.prepare.selecting import Selected
from data_pipeline.recipe import PrepareConfig, TokenizerConfig, from_plain
from data_pipeline.shards import ShardWriter, build_shards, rows_per_member
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer_training import train

MODEL = "tokenizer.model"
_TOKENS = "tokens.npy"
_COUNTS = "counts.npy"
_CHUNK_CHARACTERS = 1 << 12
_SAMPLE_BYTES_PER_TOKEN = 1000
_ENCODE_BYTES = 1 << 22
_READ_TOKENS = 1 << 20


@dataclass
class ShardSetResult:
    """One shard set as written. dropped_tokens: the tail that fills no sample."""

    name: str
    path: str
    documents: int
    bytes: int
    tokens: int
    samples: int
    dropped_tokens: int


# -- the tokenizer -----------------------------------------------------------------------------------------------------


def make_tokenizer(runner: Runner, config: PrepareConfig, parts: Sequence[Selected]) -> Path:
    """The path of the tokenizer: trained on the weighted mix, or a copy of the one that the recipe names.

    Raises BadTokenizer.
    """
    settings = config.tokenizer
    if settings.model is not None:
        sha256 = Tokenizer(settings.model).sha256  # says what is wrong with it
        return runner.one("tokenizer", copy_tokenizer, model=os.path.abspath(settings.model), sha256=sha256) / MODEL
    sample = runner.map("sample for the tokenizer", sample_text, _samples(config, parts))
    runner.progress.say(f"training a {settings.type} tokenizer of {settings.vocab_size} tokens")
    paths = [str(folder / DOCUMENTS) for folder in sample]
    return runner.one("tokenizer", train_tokenizer, sample=paths, settings=asdict(settings)) / MODEL


def _samples(config: PrepareConfig, parts: Sequence[Selected]) -> list[Task]:
    """Chunks spread evenly over each corpus, in the proportions of the mix; a small corpus is repeated."""
    budget = config.tokenizer.sample_bytes or _SAMPLE_BYTES_PER_TOKEN * config.tokenizer.vocab_size
    budget = min(budget, sum(part.training_size[1] for part in parts))
    total = sum(corpus.weight for corpus in config.corpora)
    tasks = []
    for corpus in config.corpora:
        own = [part for part in parts if part.corpus is corpus]
        rate = budget * corpus.weight / total / sum(part.training_size[1] for part in own)
        for number, part in enumerate(own):
            # Where the part takes over: the golden ratio spreads what is due over any number of small parts.
            due = number * 0.6180339887498949 % 1.0
            arguments = {"training": str(part.training), "rate": rate, "due": due}
            tasks.append(Task(arguments, part.training_size[1]))
    return tasks


def sample_text(folder: Path, *, training: str, rate: float, due: float) -> None:
    """One part's share of the text that the tokenizer is trained on: each chunk `rate` times, on average."""
    with DocumentWriter(folder / DOCUMENTS) as writer:
        for document in read_documents(Path(training)):
            text = document.text
            for start in range(0, len(text), _CHUNK_CHARACTERS):
                due += rate
                while due >= 1:
                    due -= 1
                    writer.append(text[start : start + _CHUNK_CHARACTERS], "")


def train_tokenizer(folder: Path, *, sample: list[str], settings: dict[str, Any]) -> None:
    """Trains SentencePiece."""
    texts = (document.text for path in sample for document in read_documents(Path(path)))
    (folder / MODEL).write_bytes(train(texts, from_plain(TokenizerConfig, settings)))


def copy_tokenizer(folder: Path, *, model: str, sha256: str) -> None:
    """Takes the user's model over as it is."""
    content = Path(model).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BadTokenizer(f"tokenizer {model} has changed while prepare was at work: run it again")
    (folder / MODEL).write_bytes(content)


# -- shard sets --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextFile:
    """A file of documents that belongs to a shard set. size: documents and bytes of text."""

    path: Path
    size: tuple[int, int]


def encode_sets(
    runner: Runner, config: PrepareConfig, tokenizer: Path, sets: Sequence[tuple[str, Sequence[TextFile]]]
) -> list[tuple[Path, ShardSetResult]]:
    """Each named set of document files as the folder of a shard set, and what is in it. Raises BadCorpus."""
    files = [file for _, texts in sets for file in texts]
    threads = runner.threads
    model = str(tokenizer)
    tasks = [Task({"documents": str(file.path), "model": model}, file.size[1], {"threads": threads}) for file in files]
    encoded = iter(runner.map("encode", encode_part, tasks))
    tasks = []
    for name, texts in sets:
        arguments = {
            "name": name,
            "tokens": [str(next(encoded)) for _ in texts],
            "model": model,
            "sequence_length": config.sequence_length,
            "documents": sum(file.size[0] for file in texts),
            "bytes": sum(file.size[1] for file in texts),
        }
        tasks.append(Task(arguments, sum(file.size[1] for file in texts)))
    folders = runner.map("pack", pack_set, tasks)
    return [(folder, _result(folder, name)) for folder, (name, _) in zip(folders, sets, strict=True)]


def encode_part(folder: Path, *, documents: str, model: str, threads: int) -> None:
    """Tokens of a part, each document ended by the end-of-document token; and how often each token occurs."""
    tokenizer = Tokenizer(model)
    eod = np.array([tokenizer.eod_id], dtype=np.int32)
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    with open(folder / _TOKENS, "wb") as file:
        for texts in _batches(Path(documents)):
            runs = [run for tokens in tokenizer.encode_batch(texts, threads) for run in (tokens, eod)]
            row = np.concatenate(runs)
            counts += np.bincount(row, minlength=len(counts))
            file.write(row.astype(token_dtype(tokenizer.vocab_size)).data)
    np.save(folder / _COUNTS, counts)


def pack_set(
    folder: Path, *, name: str, tokens: list[str], model: str, sequence_length: int, documents: int, bytes: int
) -> None:
    """One shard set from the tokens of its parts, in their order."""
    tokenizer = Tokenizer(model)
    dtype = token_dtype(tokenizer.vocab_size)
    packer = Packer(sequence_length, tokenizer.eod_id, dtype, rows_per_member(sequence_length, dtype))
    writer = ShardWriter(
        folder,
        name=name,
        sequence_length=sequence_length,
        dtype=dtype,
        vocab_size=tokenizer.vocab_size,
        eod_id=tokenizer.eod_id,
        tokenizer_sha256=tokenizer.sha256,
    )
    build_shards(writer, packer.pack_tokens(_runs(tokens, dtype)))
    counts = sum((np.load(Path(part) / _COUNTS) for part in tokens), np.zeros(tokenizer.vocab_size, dtype=np.int64))
    manifest = writer.finish(tokens=packer.tokens, documents=documents, bytes=bytes, counts=counts)
    if not manifest["samples"]:
        raise BadCorpus(
            f"{name} has {packer.tokens} tokens, too few for one sample of {sequence_length + 1}: give it more text"
            + (", or a larger validation_fraction" if name.endswith("-validation") else "")
        )


def _batches(documents: Path) -> Iterator[list[str]]:
    """Runs of documents of a few MiB together."""
    texts: list[str] = []
    size = 0
    for batch in read_batches(documents):
        for text in batch.texts:
            texts.append(text)
            size += len(text)
            if size >= _ENCODE_BYTES:
                yield texts
                texts, size = [], 0
    if texts:
        yield texts


def _runs(parts: Sequence[str], dtype: np.dtype[np.unsignedinteger]) -> Iterator[NDArray[np.unsignedinteger]]:
    for part in parts:
        with open(Path(part) / _TOKENS, "rb") as file:
            while len(run := np.fromfile(file, dtype=dtype, count=_READ_TOKENS)):
                yield run


def _result(folder: Path, name: str) -> ShardSetResult:
    manifest = json.loads((folder / "manifest.json").read_text())
    samples, length = manifest["samples"], manifest["sequence_length"]
    dropped = manifest["tokens"] - samples * length - 1
    return ShardSetResult(
        name, "", manifest["documents"], manifest["bytes"], manifest["tokens"], samples, max(0, dropped)
    )
