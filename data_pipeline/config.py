"""The recipe's `data:` section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Optional


@dataclass
class ShardSource:
    """One corpus of a mix."""

    shards: str
    """Shard set: a folder, relative to the current directory or absolute, or a URL (s3://, gs://, http://, https://)."""
    weight: float = 1.0
    """Share of the samples; a mix is normalised, so weights need not sum to one. Without effect in `validation`. 0 is
    for corpora that only the curriculum brings in.
    """
    tokens: Optional[str] = None  # noqa: UP045  (jsonargparse shows this form in its help)
    """Declared size, such as "410B", for planning (`trestle inspect`) before the shards exist; training ignores it."""


@dataclass
class CurriculumSegment:
    """From a point of the run on, other weights."""

    from_: str = field(metadata={"key": "from"})
    """Tokens after which the segment begins, such as "100B tokens"; those skipped after a loss spike count, too."""
    weights: dict[str, float]
    """Share of the samples of each corpus, by its shard set's name; a corpus that is not named has none."""


@dataclass
class CacheConfig:
    """Where a node keeps what it has fetched of remote shard sets. All ranks of the node share it."""

    directory: Optional[str] = None  # noqa: UP045
    """Folder on a local disk; null: trestle/shards in the user's cache folder ($XDG_CACHE_HOME, ~/.cache), or in
    $TMPDIR where there is none.
    """
    size: str = "20 GB"
    """Most that it may hold; what was not used for the longest time goes first."""


@dataclass
class ImageConfig:
    """How pictures of image-text shards become a model's input."""

    augment: Literal["none", "square_crop", "random_resized_crop"] = "square_crop"
    """square_crop: the shorter side is resized to the model's, and a square is cut out at random (CLIP's paper);
    random_resized_crop: a part of random size and shape is resized to a square (open_clip's default); none: as in
    evaluation, the square in the middle.
    """
    crop_scale: list[float] = field(default_factory=lambda: [0.9, 1.0])
    """Of random_resized_crop: least and greatest share of the picture's area."""
    crop_ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    """Of random_resized_crop: least and greatest width ÷ height of the part."""
    flip: float = 0.0
    """Probability of mirroring left and right. Captions that tell left from right, or text in pictures, forbid it."""
    brightness: float = 0.0
    """Greatest change: a factor from 1 - b to 1 + b is drawn. The same for contrast and saturation."""
    contrast: float = 0.0
    """Greatest change of the contrast."""
    saturation: float = 0.0
    """Greatest change of the saturation."""
    jitter: float = 1.0
    """Probability that brightness, contrast and saturation are changed at all."""
    grayscale: float = 0.0
    """Probability of taking the colours away."""
    workers: int = 4
    """Threads of a rank that decode pictures; 0: the one that reads. Without effect on what is read."""


@dataclass
class DataConfig:
    """What a training run reads."""

    mix: list[ShardSource] = field(default_factory=list)
    """Corpora to train on, each with its weight."""
    validation: list[ShardSource] = field(default_factory=list)
    """Held-out shard sets, read in order without shuffling."""
    prefetch: int = 2
    """Batches that are read ahead in the background."""
    curriculum: list[CurriculumSegment] = field(default_factory=list)
    """Segments with other weights than those of `mix`, in order. Corpora go on where they were: nothing repeats."""
    shuffle: Literal["auto", "full", "windowed"] = "auto"
    """full: each epoch is one permutation of all samples; windowed: members (1 MiB of samples) in a random order, and
    samples within windows of them, so that remote shards are read member by member; auto: windowed if a shard set of
    the mix is remote.
    """
    shuffle_window: int = 64
    """Members in a window of the windowed shuffle."""
    allow_change: bool = False
    """Lets this resume go on with other shards, weights, curriculum or shuffle than the checkpoint's."""
    on_damaged: Literal["stop", "substitute"] = "stop"
    """What a member of the mix that is damaged or gone leads to: an error that names it, or other samples of its corpus
    in its place, noted in the checkpoint. Held-out sets always stop.
    """
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Local copies of remote shards."""
    document_masks: bool = False
    """Keep the documents of a packed sample apart, in training and validation: attention and positions begin anew after
    each end-of-document token, and the first token of the next document is no target. Targets left out add nothing to
    a step's loss but still count in its divisor, so that every token weighs the same in any batch and layout; reported
    losses are means over the targets that are left.
    """
    images: ImageConfig = field(default_factory=ImageConfig)
    """Of image-text shards: augmentation and decoding."""
