"""What a picture looks like, in a few bytes: a perceptual hash of its shapes, and its colours."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.pairs.prepare.pictures import Pixels

#: Bytes of `colours`.
COLOURS = 4 * 4 * 3
_SIDE, _KEPT = 32, 8
_STEPS = np.arange(_SIDE)
#: The lowest rows of the orthonormal DCT-II of 32 numbers.
_DCT = np.cos(math.pi * (_STEPS + 0.5) * np.arange(_KEPT)[:, None] / _SIDE) * math.sqrt(2 / _SIDE)
#: Coefficients are rounded to this: equal ones, above all the zeros of a plain surface, must compare as equal anywhere.
_DIGITS = 3


def perceptual_hash(pixels: Pixels) -> int:
    """The 64-bit DCT hash known as pHash: the signs of the lowest 8 x 8 coefficients of a 32 x 32 grey picture.

    A bit says whether the coefficient is above their median; the mean of the picture is left out of that. Another
    encoding, size or brightness changes a few bits (Zauner 2010, section 3.2.1). pixels: uint8 [height, width, 3].
    """
    grey = cv2.cvtColor(_reduced(pixels, 8 * _SIDE), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float64)
    lowest = np.round(_DCT @ small @ _DCT.T, _DIGITS).ravel()
    lowest[0] = 0.0
    bits = lowest > np.median(lowest[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def colours(pixels: Pixels) -> NDArray[np.uint8]:
    """The picture in 4 x 4 pixels, uint8 [48]."""
    small = cv2.resize(_reduced(pixels, 64), (4, 4), interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.uint8).reshape(-1)


def _reduced(pixels: Pixels, side: int) -> Pixels:
    """Both sides `side` pixels at most: averaging from there on costs nothing."""
    height, width = pixels.shape[:2]
    if max(height, width) <= side:
        return pixels
    size = (min(width, side), min(height, side))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
