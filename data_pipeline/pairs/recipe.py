"""What `trestle prepare` takes for pictures with captions: a `prepare:` section with `pairs:` instead of `corpora:`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Optional

from data_pipeline.stages.language import LanguageConfig


@dataclass
class CaptionLanguageConfig(LanguageConfig):
    """The same for captions, which are shorter than documents, and further from every language's profile."""

    keep: list[str] = field(default_factory=list)
    """Language codes, as the detector gives them: ISO 639-1 for resiliparse. An empty list, the default, keeps all."""
    max_distance: int = 1500
    """Only resiliparse: a caption is uncertain if it is further than this from every language's profile."""
    min_characters: int = 25
    """Shorter captions are too short to tell."""


@dataclass
class PairFilterConfig:
    """What a pair needs to be kept. The defaults are those of LAION-400M (captions) and DataComp (aspect)."""

    min_side: int = 64
    """Pixels of the shorter side, at least."""
    max_aspect: float = 3.0
    """Longer side over shorter side, at most."""
    min_characters: int = 5
    """Characters of a caption, at least."""
    max_characters: int = 1000
    """Characters of a caption, at most."""
    min_words: int = 1
    """Words of a caption, at least."""
    max_words: Optional[int] = None  # noqa: UP045  (jsonargparse shows this form in its help)
    """Words of a caption, at most; null: any number."""
    language: CaptionLanguageConfig = field(default_factory=CaptionLanguageConfig)
    """Which languages captions may be in; by default any, and none is told. Short captions are told wrongly, often."""


@dataclass
class CaptionTokenizerConfig:
    """The tokenizer for captions: trained on those that are kept, an existing SentencePiece model, or CLIP's own."""

    type: Literal["unigram", "bpe", "char"] = "unigram"
    """SentencePiece model type to train."""
    vocab_size: int = 32768
    """Number of tokens, without the two for the start and the end of a caption."""
    sample_bytes: Optional[int] = None  # noqa: UP045
    """Bytes of captions to train on, drawn from the corpora by weight. Default: 1,000 for each vocabulary entry."""
    model: Optional[str] = None  # noqa: UP045
    """Path of an existing SentencePiece .model file; then nothing is trained."""
    clip_merges: Optional[str] = None  # noqa: UP045
    """Path of CLIP's merges file, bpe_simple_vocab_16e6.txt.gz or unpacked; then nothing is trained."""


@dataclass
class ResizeConfig:
    """Makes large pictures smaller. They are written anew, as JPEG; smaller ones stay byte for byte as they are."""

    shorter_side: int = 256
    """Pixels of the shorter side of what is larger."""
    quality: int = 90
    """Quality of the JPEG, 1 to 100."""


@dataclass
class PairDedupConfig:
    """Copies and near copies of pictures, within and across corpora; of each group the first pair stays.

    A picture that comes again with another caption is a copy, too: its first caption is kept.
    """

    exact: bool = True
    """Drop pictures whose file has the same bytes as an earlier one's."""
    perceptual: bool = True
    """Drop pictures that look like an earlier one, after another encoding or in another size. Icons that differ in a
    detail look alike, too: false for them, or a smaller distance."""
    distance: int = 4
    """Bits in which the 64-bit perceptual hashes (DCT) of two near copies differ, at most."""
    colour: float = 8.0
    """Mean difference of the colours (0 to 255) of two near copies, at most: the hash does not see colour."""
    memory_gib: float = 4.0
    """GiB of memory for the data of all workers together. Does not change the output."""


@dataclass
class PairCorpusConfig:
    """One corpus of pairs: where they are, and what they need to be kept."""

    name: str
    """Folder name of the shard set."""
    sources: list[str]
    """Files, folders, globs (** too) and URLs. Pictures with a caption beside each (photo.jpg, photo.txt); lists of
    (path or URL, caption): .parquet, .csv, .tsv, .json, .jsonl; WebDataset tars (KEY.jpg, KEY.txt)."""
    weight: float = 1.0
    """Share of the mix."""
    exclude: list[str] = field(default_factory=list)
    """Paths to leave out, as shell patterns in which * also matches slashes."""
    path_field: str = "url"
    """Column of lists with a picture's URL or path; paths are relative to the list's folder."""
    caption_field: str = "caption"
    """Column of lists, and key in a tar's .json where a picture has no .txt, with the caption."""
    caption: Literal["file", "folder"] = "file"
    """Where the captions of pictures that are files come from: the .txt beside them, or their folder's name; then lists
    count only where a source names them, and not those in its folders."""
    template: str = "{}"
    """With caption: folder, what stands around the name, such as "a photo of a {}"."""
    filters: Optional[PairFilterConfig] = None  # noqa: UP045
    """Replaces the recipe's filters for this corpus, as a whole."""
    resize: Optional[ResizeConfig] = None  # noqa: UP045
    """Makes large pictures smaller; null keeps the bytes of every picture as they are."""
    validation_fraction: Optional[float] = None  # noqa: UP045
    """Overrides the recipe's validation_fraction for this corpus."""


@dataclass
class PairPrepareConfig:
    """From pictures with captions to shards."""

    output: str
    """Folder for the shard sets, the tokenizer, mix.yaml, report.html and what else is made."""
    pairs: list[PairCorpusConfig]
    """The corpora of the mix. Of two copies deduplication keeps the one in the corpus of higher priority."""
    priority: list[str] = field(default_factory=list)
    """Names of corpora, highest priority first; those not named follow in the order of `pairs`."""
    tokenizer: CaptionTokenizerConfig = field(default_factory=CaptionTokenizerConfig)
    """Tokenizer to train or to use."""
    validation_fraction: float = 0.01
    """Share of the pairs (by hash of the picture) that is held out; copies and near copies are on one side."""
    filters: PairFilterConfig = field(default_factory=PairFilterConfig)
    """What a pair needs to be kept."""
    deduplicate: PairDedupConfig = field(default_factory=PairDedupConfig)
    """Copies and near copies."""
    damaged_files: Literal["stop", "keep"] = "stop"
    """A tar or a list that breaks off: stop and name it, or keep the pairs before the damage and count it."""
    max_picture_bytes: int = 32 << 20
    """Larger picture files are dropped and counted, at most 64 MiB; bounds the memory of a worker."""
    max_pixels: int = 64_000_000
    """Pictures of more pixels are dropped and counted before they are decoded; at most 67,108,864."""
    part_bytes: int = 256 << 20
    """Bytes of pictures or tars that one task reads, whole files together. Does not change the output."""
    part_rows: int = 10_000
    """Rows of a list, or pictures that are files, that one task reads at most. Does not change the output."""
    fetch_threads: int = 16
    """Pictures behind URLs that one task fetches at once. Does not change the output."""
    workers: int = 0
    """Tasks at once; 0 takes every core. Does not change the output."""
    overwrite: bool = False
    """Replace the shard sets of an earlier run in the same folder."""
