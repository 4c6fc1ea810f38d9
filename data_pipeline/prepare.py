"""`trestle prepare`: files → cleaned, deduplicated documents → a tokenizer → packed samples → shard sets.

Everything is built in a folder of its own inside the output and moved to its place at the end, shard set by shard set,
mix.yaml last. Equal input gives equal bytes, for any number of threads.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from data_pipeline.cleaning import Deduplicator, StageFunction, clean, is_held_out
from data_pipeline.config import CorpusConfig, PrepareConfig
from data_pipeline.errors import BadConfig, BadCorpus
from data_pipeline.heldout import overlaps
from data_pipeline.packing import Packer, token_dtype
from data_pipeline.readers import Document, Funnel, read_documents
from data_pipeline.shards import ShardWriter, build_shards, publish, rows_per_member, sync_directory, write_synced
from data_pipeline.spool import Spool
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer_training import train
from data_pipeline.workspace import check_output, disk_errors, work_folder

Progress = Callable[[str], None]
_ENCODE_CHARACTERS = 1 << 22
_SAMPLE_CHARACTERS = 1 << 12
_SAMPLE_BYTES_PER_TOKEN = 1000


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


@dataclass
class CorpusResult:
    """One corpus: its funnel and its shard sets."""

    name: str
    weight: float
    funnel: Funnel
    held_out_dropped: int
    """Held-out documents dropped because they overlap with the training text or are too short to tell."""
    training: ShardSetResult | None = None
    validation: ShardSetResult | None = None


@dataclass
class PrepareResult:
    """What was written, and what was dropped on the way."""

    output: str
    vocab_size: int
    tokenizer_sha256: str
    corpora: list[CorpusResult]
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each phase, in seconds."""


@dataclass
class _Corpus:
    config: CorpusConfig
    training: Spool
    held_out: Spool
    result: CorpusResult


def prepare(config: PrepareConfig, progress: Callable[[str], None]) -> PrepareResult:
    """Runs the whole recipe; `progress` is called with a line now and then.

    Raises BadConfig, BadCorpus or BadTokenizer for what the user can mend, EnvironmentFailure for a full disk; then
    nothing of this run is left in the output folder.
    """
    _check(config)
    output = Path(config.output)
    with disk_errors(output), work_folder(output) as work:
        return _Preparation(config, output, work, progress).run()


class _Preparation:
    def __init__(self, config: PrepareConfig, output: Path, work: Path, progress: Progress) -> None:
        self.config, self.output, self.work, self.progress = config, output, work, progress
        self.threads = config.threads or len(os.sched_getaffinity(0))
        self.seconds: dict[str, float] = {}

    def run(self) -> PrepareResult:
        check_output(self.config, self.output)
        with self._phase("read"):
            corpora = self._read()
        with self._phase("held_out"):
            self._check_held_out(corpora)
        with self._phase("tokenizer"):
            tokenizer = self._tokenizer(corpora)
        with self._phase("encode"):
            for corpus in corpora:
                corpus.result.training = self._encode(corpus.training, corpus.config.name, tokenizer)
                if corpus.held_out.documents:
                    corpus.result.validation = self._encode(
                        corpus.held_out, f"{corpus.config.name}-validation", tokenizer
                    )
        self._publish(corpora)
        results = [corpus.result for corpus in corpora]
        return PrepareResult(str(self.output), tokenizer.vocab_size, tokenizer.sha256, results, self.seconds)

    def _read(self) -> list[_Corpus]:
        deduplicator = Deduplicator()  # one for all: an earlier corpus keeps the copy
        stages: dict[str, StageFunction] = {"clean": clean, "deduplicate": deduplicator}
        corpora = []
        for config in self.config.corpora:
            funnel = Funnel()
            documents: Iterator[Document] = read_documents(config, funnel)
            for stage in config.stages:
                documents = stages[stage](documents, funnel)
            fraction = _fraction(self.config, config)
            training = Spool(self.work / f"{config.name}.training")
            held_out = Spool(self.work / f"{config.name}.held-out")
            with training, held_out:
                for document in documents:
                    funnel.kept += 1
                    (held_out if is_held_out(document.text, fraction) else training).append(document.text)
            self.progress(f"{config.name}: {funnel}, {(training.bytes + held_out.bytes) / 1e6:.1f} MB")
            if not training.documents:
                raise BadCorpus(f"corpus {config.name} is empty: {funnel}")
            result = CorpusResult(config.name, config.weight, funnel, held_out_dropped=0)
            corpora.append(_Corpus(config, training, held_out, result))
        return corpora

    def _check_held_out(self, corpora: list[_Corpus]) -> None:
        texts = [list(corpus.held_out) for corpus in corpora]
        together = [text for of_corpus in texts for text in of_corpus]
        training = (text for corpus in corpora for text in corpus.training)
        shares = overlaps(together, training)
        honest = ~(shares > self.config.held_out_overlap) & ~np.isnan(shares)
        first = 0
        for corpus, of_corpus in zip(corpora, texts, strict=True):
            kept = honest[first : first + len(of_corpus)]
            first += len(of_corpus)
            corpus.result.held_out_dropped = int((~kept).sum())
            corpus.held_out = Spool(corpus.held_out.path)
            with corpus.held_out as spool:
                for text, keep in zip(of_corpus, kept, strict=True):
                    if keep:
                        spool.append(text)
            if _fraction(self.config, corpus.config) == 0:
                continue
            if not corpus.held_out.documents:
                raise BadCorpus(
                    f"corpus {corpus.config.name}: none of its {len(of_corpus)} held-out documents differs enough from "
                    "the training text: give it a larger validation_fraction, or 0 to hold nothing out"
                )
            self.progress(
                f"{corpus.config.name}: {corpus.held_out.documents} documents held out, "
                f"{corpus.result.held_out_dropped} more dropped for overlap with the training text"
            )

    def _tokenizer(self, corpora: list[_Corpus]) -> Tokenizer:
        path = self.work / "tokenizer.model"
        settings = self.config.tokenizer
        if settings.model is not None:
            Tokenizer(settings.model)  # says what is wrong with it
            shutil.copyfile(settings.model, path)
        else:
            self.progress(f"training a {settings.type} tokenizer of {settings.vocab_size} tokens")
            write_synced(path, train(self._sample(corpora), settings))
        return Tokenizer(path)

    def _sample(self, corpora: list[_Corpus]) -> Iterator[str]:
        """Chunks spread evenly over each corpus, in the proportions of the mix; a small corpus is repeated."""
        budget = self.config.tokenizer.sample_bytes or _SAMPLE_BYTES_PER_TOKEN * self.config.tokenizer.vocab_size
        budget = min(budget, sum(corpus.training.bytes for corpus in corpora))
        total = sum(corpus.config.weight for corpus in corpora)
        for corpus in corpora:
            rate = budget * corpus.config.weight / total / corpus.training.bytes
            due = 0.0
            for text in corpus.training:
                for chunk in _chunks(text):
                    due += rate
                    while due >= 1:
                        due -= 1
                        yield chunk

    def _encode(self, spool: Spool, name: str, tokenizer: Tokenizer) -> ShardSetResult:
        sequence_length, dtype = self.config.sequence_length, token_dtype(tokenizer.vocab_size)
        folder = self.work / name
        folder.mkdir()
        packer = Packer(sequence_length, tokenizer.eod_id, dtype, rows_per_member(sequence_length, dtype))
        counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        writer = ShardWriter(
            folder,
            name=name,
            sequence_length=sequence_length,
            dtype=dtype,
            vocab_size=tokenizer.vocab_size,
            eod_id=tokenizer.eod_id,
            tokenizer_sha256=tokenizer.sha256,
        )

        def encoded() -> Iterator[NDArray[np.int32]]:
            for texts in _batches(spool):
                documents = tokenizer.encode_batch(texts, self.threads)
                counts[:] += np.bincount(np.concatenate(documents), minlength=len(counts))
                yield from documents

        build_shards(writer, packer.pack(encoded()))
        counts[tokenizer.eod_id] += spool.documents
        manifest = writer.finish(tokens=packer.tokens, documents=spool.documents, bytes=spool.bytes, counts=counts)
        if not manifest["samples"]:
            raise BadCorpus(
                f"{name} has {packer.tokens} tokens, too few for one sample of {sequence_length + 1}: give it more text"
                + (", or a larger validation_fraction" if name.endswith("-validation") else "")
            )
        rate = spool.bytes / packer.tokens
        self.progress(f"{name}: {packer.tokens} tokens, {rate:.2f} bytes a token, {manifest['samples']} samples")
        path = str(self.output / name)
        return ShardSetResult(
            name, path, spool.documents, spool.bytes, packer.tokens, manifest["samples"], packer.dropped
        )

    def _publish(self, corpora: list[_Corpus]) -> None:
        """mix.yaml goes first and comes last: where it is, all that it names is there."""
        training = [(c.result.training, c.config.weight) for c in corpora if c.result.training]
        validation = [c.result.validation for c in corpora if c.result.validation]
        mix = {
            "mix": [{"shards": result.path, "weight": weight} for result, weight in training],
            "validation": [{"shards": result.path} for result in validation],
        }
        (self.output / "mix.yaml").unlink(missing_ok=True)
        for result in [*(r for r, _ in training), *validation]:
            publish(self.work / result.name, self.output / result.name)
        os.replace(self.work / "tokenizer.model", self.output / "tokenizer.model")
        write_synced(self.work / "mix.yaml", yaml.safe_dump(mix, sort_keys=False).encode())
        os.replace(self.work / "mix.yaml", self.output / "mix.yaml")
        sync_directory(self.output)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start


def _chunks(text: str) -> Iterator[str]:
    return (text[i : i + _SAMPLE_CHARACTERS] for i in range(0, len(text), _SAMPLE_CHARACTERS))


def _batches(texts: Spool) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _ENCODE_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _fraction(config: PrepareConfig, corpus: CorpusConfig) -> float:
    return config.validation_fraction if corpus.validation_fraction is None else corpus.validation_fraction


def _check(config: PrepareConfig) -> None:
    if not config.corpora:
        raise BadConfig("corpora is empty: name at least one")
    names = [corpus.name for corpus in config.corpora]
    for corpus in config.corpora:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", corpus.name) or corpus.name.endswith("-validation"):
            allowed = "use letters, digits, dots, - and _, and no ending -validation"
            raise BadConfig(f'corpus name "{corpus.name}": {allowed}')
        if names.count(corpus.name) > 1:
            raise BadConfig(f"two corpora are named {corpus.name}")
        if not corpus.weight > 0:
            raise BadConfig(f"corpus {corpus.name}: weight is {corpus.weight}, it must be positive")
        if not 0 <= _fraction(config, corpus) < 1:
            raise BadConfig(f"corpus {corpus.name}: validation_fraction must be at least 0 and less than 1")
    if config.sequence_length < 1:
        raise BadConfig(f"sequence_length is {config.sequence_length}, it must be at least 1")
