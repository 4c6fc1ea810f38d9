"""A picture's bytes → whether it can be learned from: kind, size, pixels; a thumbnail; a smaller one when asked."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

NOT_A_PICTURE = "picture: no JPEG, PNG or WebP"
DAMAGED = "picture: truncated or damaged"
TOO_MANY_PIXELS = "picture: more pixels than max_pixels"

Pixels = NDArray[np.uint8]

#: What Pillow calls them -> the extension in a shard. MPO is what some telephones make: a JPEG with more behind it.
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_ORIENTATION = 0x0112
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP")) as image:
                if image.width * image.height > max_pixels:
                    raise Unfit(TOO_MANY_PIXELS)
                pixels = _decoded(image, content)
                turned = _upright(pixels, image.getexif().get(_ORIENTATION, 1))
                return Picture(_EXTENSIONS[str(image.format)], np.ascontiguousarray(turned))
        except Unfit:
            raise
        except Image.DecompressionBombError as error:
            raise Unfit(TOO_MANY_PIXELS) from error
        except UnidentifiedImageError as error:
            begun = content.startswith(_MAGIC) or content[8:12] == b"WEBP"
            raise Unfit(DAMAGED if begun else NOT_A_PICTURE) from error
        except Exception as error:
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


def _decoded(image: Image.Image, content: bytes) -> Pixels:
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        try:
            # Strict: what breaks off is an error. Three times as fast as Pillow.
            decoded: Pixels = simplejpeg.decode_jpeg(content, colorspace="RGB", strict=True)
            return decoded
        except ValueError:
            pass  # it also refuses harmless oddities: Pillow decides
    image.load()
    if image.mode.startswith("I"):  # 16 bits of grey
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, over).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _upright(pixels: Pixels, orientation: Any) -> Pixels:
    """Undoes the rotation and reflection that EXIF tells of (Exif 2.3, tag 274)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
