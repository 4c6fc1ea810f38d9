"""A picture's bytes → whether it can be learned from: kind, size, pixels; a thumbnail; a smaller one when asked.

Pictures are decoded as training decodes them, so that none gets into a shard set that training could not read.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from data_pipeline.pairs.decode import BadPicture, decode, read_header

NOT_A_PICTURE = "picture: no JPEG, PNG or WebP"
DAMAGED = "picture: truncated or damaged"
TOO_MANY_PIXELS = "picture: more pixels than max_pixels"

Pixels = NDArray[np.uint8]

_MAGIC = (b"\xff\xd8", b"\x89PNG\r\n\x1a\n")
_THUMBNAIL_SIDE, _THUMBNAIL_QUALITY = 144, 72


class Unfit(Exception):
    """A pair cannot be used; the message is the reason, one of few."""


@dataclass(frozen=True)
class Picture:
    """A picture that decodes whole. pixels: uint8 [height, width, 3], RGB, upright, over white where transparent."""

    extension: str
    pixels: Pixels

    @property
    def height(self) -> int:
        """Pixels, upright."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Pixels, upright."""
        return int(self.pixels.shape[1])


def examine(content: bytes, max_pixels: int) -> Picture:
    """Decodes the whole picture. Its size is known, and refused, before anything is decoded. Raises Unfit."""
    try:
        header = read_header(content)
        if header.width * header.height > max_pixels:
            raise Unfit(TOO_MANY_PIXELS)
        return Picture(header.format, np.ascontiguousarray(decode(content, header)))
    except BadPicture as error:
        if "pixels are more than" in str(error):
            raise Unfit(TOO_MANY_PIXELS) from error
        begun = content.startswith(_MAGIC) or content[8:12] == b"WEBP"
        raise Unfit(DAMAGED if begun else NOT_A_PICTURE) from error
    except (cv2.error, ValueError, struct.error) as error:  # what a decoder raises of hostile bytes beside that
        raise Unfit(DAMAGED) from error


def shrunk(picture: Picture, shorter_side: int, quality: int) -> bytes | None:
    """The picture as a JPEG with that shorter side in pixels; None for one that is not larger than that."""
    shortest = min(picture.width, picture.height)
    if shortest <= shorter_side:
        return None
    size = (
        max(shorter_side, round(picture.width * shorter_side / shortest)),
        max(shorter_side, round(picture.height * shorter_side / shortest)),
    )
    return _jpeg(cv2.resize(picture.pixels, size, interpolation=cv2.INTER_AREA), quality)


def thumbnail(picture: Picture) -> bytes:
    """A small JPEG for people."""
    scale = min(1.0, _THUMBNAIL_SIDE / max(picture.width, picture.height))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return _jpeg(cv2.resize(picture.pixels, size, interpolation=cv2.INTER_AREA), _THUMBNAIL_QUALITY)


def _jpeg(pixels: Any, quality: int) -> bytes:
    written: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorspace="RGB")
    return written
