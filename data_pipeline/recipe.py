"""The recipe that `trestle prepare` takes."""

from __future__ import annotations

import typing
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal, Optional, TypeVar

from data_pipeline.decontamination import DecontaminationConfig
from data_pipeline.dedup.config import DedupConfig
from data_pipeline.quality import QualityConfig
from data_pipeline.stages.c4 import C4Config
from data_pipeline.stages.extraction import ExtractionConfig
from data_pipeline.stages.gopher import GopherConfig
from data_pipeline.stages.language import LanguageConfig
from data_pipeline.stages.personal_data import PersonalDataConfig
from data_pipeline.stages.repetition import RepetitionConfig

#: The first seven look at one document at a time, in the order given; the others at all of them, in this order.
Stage = Literal[
    "extract",
    "clean",
    "language",
    "gopher",
    "repetition",
    "c4",
    "personal_data",
    "quality",
    "deduplicate",
    "fuzzy_deduplicate",
    "decontaminate",
]
LATER_STAGES = ("quality", "deduplicate", "fuzzy_deduplicate", "decontaminate")
DEFAULT_STAGES: tuple[Stage, ...] = ("extract", "clean", "deduplicate")


@dataclass
class FilterConfig:
    """Thresholds of the stages that look at one document at a time."""

    extract: ExtractionConfig = field(default_factory=ExtractionConfig)
    """From an HTML page to its text."""
    language: LanguageConfig = field(default_factory=LanguageConfig)
    """Which languages are kept."""
    gopher: GopherConfig = field(default_factory=GopherConfig)
    """Quality rules of Rae et al. 2021."""
    repetition: RepetitionConfig = field(default_factory=RepetitionConfig)
    """Repetition rules of Rae et al. 2021, table A1."""
    c4: C4Config = field(default_factory=C4Config)
    """Rules of Raffel et al. 2020, section 2.2."""
    personal_data: PersonalDataConfig = field(default_factory=PersonalDataConfig)
    """What is masked."""


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
    separator: Optional[str] = None  # noqa: UP045
    """What stands between the documents of a text that holds many, such as "\\n%\\n"; null: a text is one document."""
    stages: list[Stage] = field(default_factory=lambda: list(DEFAULT_STAGES))
    """Stages in order; an empty list leaves the text as it is. quality, deduplicate, fuzzy_deduplicate and
    decontaminate come last, in this order."""
    filters: Optional[FilterConfig] = None  # noqa: UP045
    """Replaces the recipe's filters for this corpus, as a whole."""
    validation_fraction: Optional[float] = None  # noqa: UP045
    """Overrides the recipe's validation_fraction for this corpus."""


@dataclass
class PrepareConfig:
    """From raw text to shards."""

    output: str
    """Folder for the shard sets, tokenizer.model, mix.yaml, report.html and what else is made."""
    corpora: list[CorpusConfig]
    """The corpora of the mix. Of two copies deduplication keeps the one in the corpus of higher priority."""
    priority: list[str] = field(default_factory=list)
    """Names of corpora, highest priority first; those not named follow in the order of `corpora`."""
    sequence_length: int = 2048
    """Tokens a sample predicts; a packed sample holds one more."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Tokenizer to train or to use."""
    validation_fraction: float = 0.01
    """Share of the documents (by hash) that is held out."""
    held_out_overlap: float = 0.2
    """A held-out document is dropped if more than this share of its 8-word shingles occurs in the training text."""
    filters: FilterConfig = field(default_factory=FilterConfig)
    """Thresholds of the stages extract, language, gopher, repetition, c4 and personal_data."""
    quality: QualityConfig = field(default_factory=QualityConfig)
    """The learned filter, for corpora with the stage quality."""
    deduplicate: DedupConfig = field(default_factory=DedupConfig)
    """Near-duplicates, for corpora with the stage fuzzy_deduplicate; its memory also bounds deduplicate."""
    decontaminate: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    """The evaluation sets that are cut out of corpora with the stage decontaminate."""
    damaged_files: Literal["stop", "keep"] = "stop"
    """A source that breaks off: stop and name it, or keep the documents before the damage and count it."""
    max_document_bytes: int = 64 << 20
    """Longer documents are dropped and counted; bounds the memory of a worker."""
    part_bytes: int = 32 << 20
    """Source bytes that one task reads, whole files together; what a killed run does again at most, for each worker.
    What the tokenizer and the learned filter are trained on is drawn part by part: another value, another tokenizer."""
    seed: int = 0
    """For the draws of the learned filter and the samples that it is trained on; deduplicate has its own."""
    training_tokens: str = "300B"
    """Length of the training for which the report shows the epochs of each corpus."""
    workers: int = 0
    """Tasks at once; 0 takes every core. Does not change the output."""
    overwrite: bool = False
    """Replace the shard sets of an earlier run in the same folder."""


Config = TypeVar("Config")


def from_plain(kind: type[Config], values: dict[str, Any]) -> Config:
    """The dataclass that `dataclasses.asdict` made `values` of."""
    types = typing.get_type_hints(kind)
    return kind(**{k: from_plain(types[k], v) if is_dataclass(types[k]) else v for k, v in values.items()})
