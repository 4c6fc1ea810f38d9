"""The recipe's `data:` section, and the recipe that `trestle prepare` takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Optional

Stage = Literal["clean", "deduplicate"]


@dataclass
class ShardSource:
    """One corpus of a mix."""

    shards: str
    """Folder of a shard set, relative to the current directory or absolute."""
    weight: float = 1.0
    """Share of the samples; a mix is normalised, so weights need not sum to one. Without effect in `validation`."""


@dataclass
class DataConfig:
    """What a training run reads."""

    mix: list[ShardSource] = field(default_factory=list)
    """Corpora to train on, each with its weight."""
    validation: list[ShardSource] = field(default_factory=list)
    """Held-out shard sets, read in order without shuffling."""
    prefetch: int = 2
    """Batches that are read ahead in the background."""


@dataclass
class TokenizerConfig:
    """The tokenizer: trained on the weighted mix, or an existing SentencePiece model."""

    type: Literal["unigram", "bpe", "char"] = "unigram"
    """SentencePiece model type to train."""
    vocab_size: int = 32768
    """Number of tokens, with the end-of-document token and the 256 byte tokens."""
    model: Optional[str] = None  # noqa: UP045  (jsonargparse shows this form in its help)
    """Path of an existing .model file; then nothing is trained."""
    sample_bytes: Optional[int] = None  # noqa: UP045
    """Bytes of text to train on, drawn from the corpora by weight. Default: 1,000 for each vocabulary entry."""


@dataclass
class CorpusConfig:
    """One corpus: where its documents are and what is done to them."""

    name: str
    """Folder name of the shard set."""
    sources: list[str]
    """Files, folders or globs (** too). {stdlib} and {site_packages} stand for those folders of the running Python."""
    weight: float = 1.0
    """Share of the mix."""
    exclude: list[str] = field(default_factory=list)
    """Paths to leave out, as shell patterns in which * also matches slashes."""
    text_field: str = "text"
    """Field with the text, in JSON lines and parquet."""
    stages: list[Stage] = field(default_factory=lambda: ["clean", "deduplicate"])
    """Stages in order; an empty list leaves the text as it is."""
    validation_fraction: Optional[float] = None  # noqa: UP045
    """Overrides the recipe's validation_fraction for this corpus."""


@dataclass
class PrepareConfig:
    """From raw text to shards."""

    output: str
    """Folder for the shard sets, tokenizer.model and mix.yaml."""
    corpora: list[CorpusConfig]
    """The corpora of the mix. Deduplication keeps the copy in the earlier one."""
    sequence_length: int = 2048
    """Tokens a sample predicts; a packed sample holds one more."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Tokenizer to train or to use."""
    validation_fraction: float = 0.01
    """Share of the documents (by hash) that is held out."""
    held_out_overlap: float = 0.2
    """A held-out document is dropped if more than this share of its 8-word shingles occurs in the training text."""
    threads: int = 0
    """Threads for encoding; 0 takes every core that this process may use. Does not change the output."""
    overwrite: bool = False
    """Replace the shard sets of an earlier run in the same folder."""
