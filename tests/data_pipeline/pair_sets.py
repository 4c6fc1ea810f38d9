"""Small shard sets of pictures with captions, for the tests of pairs."""

from __future__ import annotations

import collections
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.config import DataConfig, ImageConfig, ShardSource
from data_pipeline.pairs.shards import PairWriter
from data_pipeline.pairs.tokenizers import open_caption_tokenizer

FORMATS = ("JPEG", "PNG", "WEBP")
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


def smooth(height: int, width: int, seed: int) -> np.ndarray:
    """A picture uint8 [height, width, 3] of soft colours, so that JPEG changes little."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file of a picture."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture_of(number: int) -> tuple[bytes, str]:
    """A picture's file and extension: sizes and formats change with the number."""
    kind = FORMATS[number % 3]
    return encoded(smooth(20 + number * 7 % 30, 24 + number * 11 % 30, number), kind), EXTENSIONS[kind]


def write_merges(path: Path, lines: Sequence[str] = ("t h", "th e</w>", "a n", "r e", "re d</w>")) -> str:
    """A merges file of CLIP's kind; the tokenizer's sha256."""
    path.write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
    return open_caption_tokenizer(path).sha256


def learnt_merges(text: str, count: int) -> list[str]:
    """Byte-pair merges of a text of lower-case words, as CLIP's were made (Sennrich et al. 2016)."""
    words = collections.Counter((*word[:-1], word[-1] + "</w>") for word in text.split())
    merges = []
    for _ in range(count):
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for word, often in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += often
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(" ".join(best))
        merged: collections.Counter[tuple[str, ...]] = collections.Counter()
        for word, often in words.items():
            out: list[str] = []
            i = 0
            while i < len(word):
                step = 2 if word[i : i + 2] == best else 1
                out.append("".join(word[i : i + step]))
                i += step
            merged[tuple(out)] += often
        words = merged
    return merges


def write_pairs(
    directory: Path,
    samples: int,
    *,
    sha256: str,
    broken: Sequence[int] = (),
    per_member: int = 4,
    per_tar: int = 16,
    facts: bool = True,
) -> None:
    """A shard set of pairs whose captions say which they are; of those in `broken` half the picture is missing."""
    directory.mkdir(parents=True)
    writer = PairWriter(
        directory,
        name=directory.name,
        tokenizer_sha256=sha256,
        samples_per_tar=per_tar,
        samples_per_member=per_member,
    )
    for number in range(samples):
        picture, extension = picture_of(number)
        if number in broken:
            picture = picture[: len(picture) // 2]
        writer.add(picture, extension, caption_of(directory.name, number), {"key": number} if facts else None)
    writer.finish()


def caption_of(name: str, number: int) -> str:
    """What pair `number` of set `name` is called."""
    return f"the red {name} {number}"


def mix(folder: Path, weights: dict[str, float], **images: Any) -> DataConfig:
    """A recipe's data section."""
    sources = [ShardSource(str(folder / name), weight) for name, weight in weights.items()]
    return DataConfig(mix=sources, images=ImageConfig(**{"workers": 2, **images}))
