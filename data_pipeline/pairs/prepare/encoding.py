"""Kept pairs → a tokenizer for their captions → shard sets."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.document_file import DocumentWriter, read_documents
from data_pipeline.errors import BadTokenizer
from data_pipeline.pairs.prepare.selecting import Selected
from data_pipeline.pairs.prepare.store import PICTURES, read_captions, read_pairs
from data_pipeline.pairs.recipe import PairPrepareConfig
from data_pipeline.pairs.shards import PairWriter
from data_pipeline.pairs.tokenizers import open_caption_tokenizer
from data_pipeline.prepare.runner import Runner, Task
from data_pipeline.recipe import TokenizerConfig
from data_pipeline.tokenizer_training import train

_SAMPLE = "captions.arrow"
_SAMPLE_BYTES_PER_TOKEN = 1000


@dataclass
class PairSetResult:
    """One shard set as written. bytes: of pictures; caption_bytes: UTF-8."""

    name: str
    path: str
    samples: int
    bytes: int
    caption_bytes: int


# -- the tokenizer -----------------------------------------------------------------------------------------------------


def make_tokenizer(runner: Runner, config: PairPrepareConfig, parts: Sequence[Selected]) -> Path:
    """The path of the tokenizer: trained on the captions by weight, or a copy of the one that the recipe names.

    Its name is one of `tokenizers.FILES`. Raises BadTokenizer.
    """
    settings = config.tokenizer
    given = settings.model or settings.clip_merges
    if given is not None:
        content = Path(given).read_bytes()
        name = "tokenizer.model"
        if settings.clip_merges is not None:
            name = "merges.txt.gz" if content.startswith(b"\x1f\x8b") else "merges.txt"
        digest = hashlib.sha256(content).hexdigest()
        return runner.one("tokenizer", copy_tokenizer, given=os.path.abspath(given), file=name, sha256=digest) / name
    sample = runner.map("sample captions", sample_captions, _samples(config, parts))
    runner.progress.say(f"training a {settings.type} tokenizer of {settings.vocab_size} tokens")
    training = asdict(TokenizerConfig(settings.type, settings.vocab_size))
    paths = [str(folder / _SAMPLE) for folder in sample]
    return runner.one("tokenizer", train_tokenizer, sample=paths, settings=training) / "tokenizer.model"


def _samples(config: PairPrepareConfig, parts: Sequence[Selected]) -> list[Task]:
    """Captions drawn by hash in the proportions of the mix, so that parts of any size give the same."""
    budget = config.tokenizer.sample_bytes or _SAMPLE_BYTES_PER_TOKEN * config.tokenizer.vocab_size
    budget = min(budget, sum(part.training_size[2] for part in parts))
    total = sum(corpus.weight for corpus in config.pairs)
    tasks = []
    for corpus in config.pairs:
        own = [part for part in parts if part.corpus is corpus]
        rate = budget * corpus.weight / total / sum(part.training_size[2] for part in own)
        tasks += [Task({"part": str(p.part), "training": str(p.training), "rate": rate}) for p in own]
    return tasks


def sample_captions(folder: Path, *, part: str, training: str, rate: float) -> None:
    """A part's share of the captions that the tokenizer is trained on: each `rate` times, on average."""
    with DocumentWriter(folder / _SAMPLE) as writer:
        for key, caption in read_captions(Path(part), np.load(training)):
            drawn = int.from_bytes(hashlib.blake2b(key.encode(errors="replace"), digest_size=8).digest(), "big")
            times = int(rate) + (drawn < int((rate % 1.0) * 2**64))
            for _ in range(times):
                writer.append(caption, "")


def train_tokenizer(folder: Path, *, sample: list[str], settings: dict[str, Any]) -> None:
    """Trains SentencePiece."""
    texts = (document.text for path in sample for document in read_documents(Path(path)))
    (folder / "tokenizer.model").write_bytes(train(texts, TokenizerConfig(**settings)))


def copy_tokenizer(folder: Path, *, given: str, file: str, sha256: str) -> None:
    """Takes the user's tokenizer over as it is."""
    content = Path(given).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BadTokenizer(f"tokenizer {given} has changed while prepare was at work: run it again")
    (folder / file).write_bytes(content)


# -- shard sets --------------------------------------------------------------------------------------------------------


def write_sets(
    runner: Runner, tokenizer: Path, sets: Sequence[tuple[str, Sequence[tuple[Path, Path]]]]
) -> list[tuple[Path, PairSetResult]]:
    """Each named set as the folder of a shard set, and what is in it. A set: (part, which of its pairs) in order."""
    sha256 = open_caption_tokenizer(tokenizer).sha256
    tasks = [
        Task(
            {"name": name, "chosen": [[str(part), str(mask)] for part, mask in parts], "tokenizer_sha256": sha256},
            weight=sum((part / PICTURES).stat().st_size for part, _ in parts),
        )
        for name, parts in sets
    ]
    made = []
    for folder, (name, _) in zip(runner.map("write", write_set, tasks), sets, strict=True):
        manifest = json.loads((folder / "manifest.json").read_text())
        result = PairSetResult(name, "", manifest["samples"], manifest["picture_bytes"], manifest["caption_bytes"])
        made.append((folder, result))
    return made


def write_set(folder: Path, *, name: str, chosen: list[list[str]], tokenizer_sha256: str) -> None:
    """One shard set from the chosen pairs of parts."""
    writer = PairWriter(folder, name=name, tokenizer_sha256=tokenizer_sha256)
    try:
        for part, mask in chosen:
            for picture, extension, caption, facts in _chosen(Path(part), Path(mask)):
                writer.add(picture, extension, caption, facts)
    except BaseException:
        writer.abandon()
        raise
    writer.finish()


def _chosen(part: Path, mask: Path) -> Iterator[tuple[bytes, str, str, dict[str, Any]]]:
    chosen = np.load(mask)
    with open(part / PICTURES, "rb") as pictures:
        for number, pair in read_pairs(part):
            if chosen[number]:
                pictures.seek(pair.offset)
                yield pictures.read(pair.size), pair.extension, pair.caption, pair.facts
