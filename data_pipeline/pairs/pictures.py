"""A picture's file → the square that a model sees, uint8 `[3, size, size]`: red, green, blue.

Evaluation does what open_clip's does, with Pillow: the shorter side is resized (bicubic, smoothed), the middle is cut
out. Training cuts the part out first and resizes it with OpenCV, which is three times as fast: bicubic where it hardly
shrinks, by areas where it shrinks by more than a fifth, since OpenCV's bicubic does not smooth (by areas the difference
to Pillow's bicubic is 1 to 2 of 255 in the mean on photographs; with OpenCV's bicubic there it is 3 to 12). A JPEG
that has four times the side that is needed is decoded at a half (a quarter, an eighth), so that at least twice the side
is left for smoothing.

The same bytes give the same pixels on machines with the same kind of CPU and versions of the libraries; crops and
colours are drawn the same anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.pairs.augment import Augmentation, crop_of, flipped, recoloured
from data_pipeline.pairs.decode import BadPicture, decode, read_header

__all__ = ["BadPicture", "augmented", "evaluated"]

_SMOOTH_FROM = 1.2
_LONGEST = 32  # times the shorter side: what is resized for evaluation
_LEFT = 2  # times the side that is needed, of what is decoded smaller


def augmented(picture: bytes, augmentation: Augmentation, numbers: Sequence[float], out: NDArray[np.uint8]) -> None:
    """Puts what a sample with the draws `numbers` shows into `out` `[3, size, size]`. Raises BadPicture."""
    if augmentation.augment == "none":
        square = _middle(picture, out.shape[-1])
    else:
        square = _part(picture, augmentation, numbers, out.shape[-1])
    if augmentation.flip and flipped(augmentation, numbers):
        square = cv2.flip(square, 1).astype(np.uint8, copy=False)
    if augmentation.colours:
        square = recoloured(augmentation, numbers, square)
    _put(square, out)


def evaluated(picture: bytes, out: NDArray[np.uint8]) -> None:
    """Puts the middle of the picture into `out` `[3, size, size]`. Raises BadPicture."""
    _put(_middle(picture, out.shape[-1]), out)


def resized(part: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """A part of a picture `[h, w, 3]` as a square `[size, size, 3]`."""
    height, width = part.shape[:2]
    if (height, width) == (size, size):
        return part
    how = cv2.INTER_CUBIC if max(height, width) < _SMOOTH_FROM * size else cv2.INTER_AREA
    if how == cv2.INTER_AREA and min(height, width) < size:  # by areas one cannot enlarge
        part = cv2.resize(part, (min(width, size), min(height, size)), interpolation=how).astype(np.uint8, copy=False)
        how = cv2.INTER_CUBIC
    return cv2.resize(part, (size, size), interpolation=how).astype(np.uint8, copy=False)


def _part(picture: bytes, augmentation: Augmentation, numbers: Sequence[float], size: int) -> NDArray[np.uint8]:
    header = read_header(picture)
    crop = crop_of(augmentation, numbers, header.height, header.width)
    shrink = 1
    while shrink < 8 and min(crop.height, crop.width) >= 2 * shrink * _LEFT * size:
        shrink *= 2
    pixels = decode(picture, header, shrink)
    if pixels.shape[:2] == (header.height, header.width):
        part = pixels[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    else:
        top, left = crop.top // shrink, crop.left // shrink
        part = pixels[top : top + crop.height // shrink, left : left + crop.width // shrink]
    return resized(part, size)


def _middle(picture: bytes, size: int) -> NDArray[np.uint8]:
    """torchvision's Resize(size, BICUBIC) and CenterCrop(size) of a Pillow image."""
    pixels = _no_strip(decode(picture))
    height, width = pixels.shape[:2]
    if min(height, width) != size:
        short, long = min(height, width), max(height, width)
        other = int(size * long / short)
        to = (size, other) if width <= height else (other, size)
        pixels = np.asarray(Image.fromarray(pixels).resize(to, Image.Resampling.BICUBIC))
        height, width = pixels.shape[:2]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[top : top + size, left : left + size]


def _no_strip(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The middle of a picture that is far longer than wide: as a whole, one of 1 x 65,535 would become gigabytes."""
    height, width = pixels.shape[:2]
    most = _LONGEST * min(height, width)
    top, left = max(0, height - most) // 2, max(0, width - most) // 2
    return pixels[top : height - top, left : width - left]


def _put(square: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    cv2.split(np.ascontiguousarray(square), [out[0], out[1], out[2]])
