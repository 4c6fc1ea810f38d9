"""Which part of a picture a sample shows, and in what colours: a pure function of (seed, sample number).

Random numbers come from a counter (SplitMix's finaliser over a key and the sample's number, Steele et al. 2014), so
that any worker, rank or resume draws the same ones. The parts are those of CLIP's paper (Radford et al. 2021, section
2.4: "a random square crop from resized images") and of torchvision's RandomResizedCrop, which open_clip uses; the
colours are torchvision's ColorJitter, without hue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import ImageConfig
from data_pipeline.errors import BadConfig
from data_pipeline.permutation import derive_key, finalise

_TRIES = 10
DRAWS = 4 * _TRIES + 8
"""Random numbers of a sample."""
_AFTER_CROP = 4 * _TRIES


@dataclass(frozen=True)
class Crop:
    """A part of an upright picture, in its pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Augmentation:
    """The recipe's settings that change what is seen; `workers` does not."""

    augment: Literal["none", "square_crop", "random_resized_crop"]
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip: float
    brightness: float
    contrast: float
    saturation: float
    jitter: float
    grayscale: float

    @classmethod
    def of(cls, config: ImageConfig) -> Augmentation:
        """Raises BadConfig."""
        for key, most in (("crop_scale", 1.0), ("crop_ratio", math.inf)):
            low_high = getattr(config, key)
            if len(low_high) != 2 or not 0 < low_high[0] <= low_high[1] <= most:
                raise BadConfig(
                    f"data.images.{key} is {low_high}; it is a least and a greatest value, such as [0.9, 1.0]"
                )
        for key in ("flip", "jitter", "grayscale", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(config, key) <= 1:
                raise BadConfig(f"data.images.{key} is {getattr(config, key)}; it is between 0 and 1")
        if config.workers < 0:
            raise BadConfig(f"data.images.workers is {config.workers}; it is at least 0")
        # What is without effect is no difference.
        used = config if config.augment == "random_resized_crop" else ImageConfig()
        return cls(
            config.augment,
            (used.crop_scale[0], used.crop_scale[1]),
            (used.crop_ratio[0], used.crop_ratio[1]),
            *(getattr(config, key) for key in ("flip", "brightness", "contrast", "saturation", "jitter", "grayscale")),
        )

    @classmethod
    def from_json(cls, described: dict[str, Any]) -> Augmentation:
        """What `to_json` gave."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in described.items()}
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """For the fingerprint."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in self.__dict__.items()}

    @property
    def colours(self) -> bool:
        """Whether any sample's colours may change."""
        return bool(self.grayscale or (self.jitter and (self.brightness or self.contrast or self.saturation)))


def draws(seed: int, samples: NDArray[np.int64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) `[n, DRAWS]` of samples `[n]`."""
    key = np.uint64(derive_key(seed, "augmentation"))
    counters: Any = samples.astype(np.uint64)[:, None] * np.uint64(DRAWS) + np.arange(DRAWS, dtype=np.uint64)
    # Twice: neighbouring counters differ in few bits.
    mixed = finalise(finalise(counters * np.uint64(0x9E3779B97F4A7C15) + key) ^ key)
    numbers: NDArray[np.float64] = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def crop_of(augmentation: Augmentation, numbers: Sequence[float], height: int, width: int) -> Crop:
    """The part of a picture of this size that a sample with these draws shows."""
    if augmentation.augment == "random_resized_crop":
        return _random_resized_crop(augmentation, numbers, height, width)
    side = min(height, width)
    if augmentation.augment == "none":
        return Crop((height - side) // 2, (width - side) // 2, side, side)
    return Crop(_below(height - side + 1, numbers[0]), _below(width - side + 1, numbers[1]), side, side)


def _random_resized_crop(augmentation: Augmentation, numbers: Sequence[float], height: int, width: int) -> Crop:
    """torchvision's `RandomResizedCrop.get_params`."""
    low, high = augmentation.crop_scale
    narrow, wide = map(math.log, augmentation.crop_ratio)
    for first in range(0, 4 * _TRIES, 4):
        area = height * width * (low + (high - low) * numbers[first])
        ratio = math.exp(narrow + (wide - narrow) * numbers[first + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = _below(height - h + 1, numbers[first + 2]), _below(width - w + 1, numbers[first + 3])
            return Crop(top, left, h, w)
    narrow, wide = augmentation.crop_ratio
    h, w = height, width
    if width / height < narrow:
        h = max(1, min(height, round(width / narrow)))
    elif width / height > wide:
        w = max(1, min(width, round(height * wide)))
    return Crop((height - h) // 2, (width - w) // 2, h, w)


def _below(count: int, number: float) -> int:
    return min(int(count * number), count - 1)


def flipped(augmentation: Augmentation, numbers: Sequence[float]) -> bool:
    """Whether the sample is mirrored."""
    return numbers[_AFTER_CROP] < augmentation.flip


def recoloured(augmentation: Augmentation, numbers: Sequence[float], pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture `[h, w, 3]` in the sample's colours: brightness, contrast, saturation in a drawn order, then grey."""
    drawn = numbers[_AFTER_CROP + 1 :]
    out = pixels
    if drawn[0] < augmentation.jitter:
        steps = []
        for number, (name, most) in enumerate(
            (("b", augmentation.brightness), ("c", augmentation.contrast), ("s", augmentation.saturation))
        ):
            if most:
                steps.append((name, 1 - most + 2 * most * drawn[1 + number]))
        order = _below(math.factorial(len(steps)), drawn[4])
        while steps:
            order, chosen = divmod(order, len(steps))
            name, factor = steps.pop(chosen)
            out = _changed(name, factor, out)
    if drawn[5] < augmentation.grayscale:
        out = np.broadcast_to(_grey(out), out.shape)
    return out


def _changed(name: str, factor: float, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """torchvision's blend of the picture with black, its mean grey, or its greys."""
    colours = pixels.astype(np.float32)
    if name == "b":
        other: Any = np.float32(0)
    elif name == "c":
        other = np.float32(np.floor(_grey(pixels).mean(dtype=np.float64) + 0.5))
    else:
        other = _grey(pixels).astype(np.float32)
    blended = colours * np.float32(factor) + other * np.float32(1 - factor)
    return np.clip(blended, 0, 255).astype(np.uint8)


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Luma `[h, w, 1]` as Pillow has it (ITU-R 601-2)."""
    weights = np.array([19595, 38470, 7471], dtype=np.uint32)
    luma = (pixels.astype(np.uint32) * weights).sum(axis=2, keepdims=True, dtype=np.uint32)
    return ((luma + 0x8000) >> 16).astype(np.uint8)
