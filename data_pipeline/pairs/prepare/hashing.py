"""What a picture looks like, in a few bytes: a perceptual hash of its shapes, and its colours."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.pairs.prepare.pictures import Pixels

#: Bytes of the colours.
COLOURS = 4 * 4 * 3
_SIDE, _KEPT = 32, 8
_STEPS = np.arange(_SIDE)
#: The lowest rows of the orthonormal DCT-II of 32 numbers.
_DCT = np.cos(math.pi * (_STEPS + 0.5) * np.arange(_KEPT)[:, None] / _SIDE) * math.sqrt(2 / _SIDE)
#: Coefficients are rounded to this: equal ones, above all the zeros of a plain surface, must compare as equal anywhere.
_DIGITS = 3


def look(pixels: Pixels) -> tuple[int, NDArray[np.uint8]]:
    """A picture's perceptual hash and its colours. pixels: uint8 [height, width, 3]."""
    small = np.asarray(cv2.resize(pixels, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return _hash(small), _colours(small)


def _hash(small: Pixels) -> int:
    """The 64-bit DCT hash known as pHash: the signs of the lowest 8 x 8 coefficients of a 32 x 32 grey picture.

    A bit says whether the coefficient is above their median; the mean of the picture is left out of that. Another
    encoding, size or brightness changes a few bits (Zauner 2010, section 3.2.1).
    """
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float64)
    lowest = np.round(_DCT @ grey @ _DCT.T, _DIGITS).ravel()
    lowest[0] = 0.0
    bits = lowest > np.median(lowest[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _colours(small: Pixels) -> NDArray[np.uint8]:
    """The picture in 4 x 4 pixels, uint8 [48]."""
    return np.asarray(cv2.resize(small, (4, 4), interpolation=cv2.INTER_AREA), dtype=np.uint8).reshape(-1)
