"""What a model that knows only token frequencies scores: the bar that any training must clear."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from data_pipeline.config import CacheConfig, ShardSource
from data_pipeline.stream import open_sets


def unigram_cross_entropy(
    mix: Sequence[ShardSource], validation: Sequence[ShardSource], cache: CacheConfig | None = None
) -> float:
    """Cross-entropy of the held-out tokens under the mix's token frequencies, in nats per token.

    The frequencies are those of the weighted mix (each corpus normalised, then weighted), with one occurrence added to
    every token so that none is impossible. The sets' own totals are used: end-of-document tokens count.
    """
    sets = open_sets(mix, "data.mix", cache)
    shares = np.array([source.weight for source in mix]) / sum(source.weight for source in mix)
    scale = sum(s.tokens for s in sets)
    counts = 1.0 + sum(share * scale * (s.counts() / s.tokens) for share, s in zip(shares, sets, strict=True))
    log_probability = np.log(counts / counts.sum())
    held_out = sum(s.counts() for s in open_sets(validation, "data.validation", cache))
    return float(-(held_out * log_probability).sum() / np.sum(held_out))


def bits_per_byte(nats_per_token: float, validation: Sequence[ShardSource], cache: CacheConfig | None = None) -> float:
    """The same in bits per UTF-8 byte of the held-out text."""
    sets = open_sets(validation, "data.validation", cache)
    return nats_per_token / math.log(2) * sum(s.tokens for s in sets) / sum(s.bytes for s in sets)
