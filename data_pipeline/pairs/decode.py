"""A picture's file → its pixels, within bounds that are known before anything is decoded.

JPEG through libjpeg-turbo (simplejpeg), PNG and WebP through OpenCV. Greys become colours; CMYK is taken as Adobe
writes it (as Pillow does); of 16 bits the upper 8 are kept; what is transparent shows white paper, where Pillow's
`convert("RGB")`, and so open_clip, shows whatever colour was left behind the transparency (often black on black). A
JPEG is turned upright as its EXIF says and as viewers show it, which open_clip does not do. Of an animation the first
picture counts. A file that is truncated, or that its decoder calls corrupt, is a BadPicture.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

MAX_PIXELS = 1 << 26
"""Of a picture as stored: 64 Mi, 192 MiB as bytes of colour."""
MAX_SIDE = 65535
_EXIF_SEARCH = 4096
_ROWS = 64
_UPPER = 1 if sys.byteorder == "little" else 0
_ROTATIONS = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}

cv2.setNumThreads(1)  # what decodes in several threads wants one picture a thread
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # a corrupt picture is told by whoever asked for it


class BadPicture(Exception):
    """A file that is no picture of a known format, is truncated or corrupt, or is too large."""


@dataclass(frozen=True)
class Header:
    """What a picture's first bytes say."""

    format: str
    """jpg, png or webp: also its extension in shards."""
    width: int
    """Of the upright picture."""
    height: int
    orientation: int = 1
    """EXIF's, 1 to 8; 1: as stored."""
    cmyk: bool = False


def read_header(picture: bytes) -> Header:
    """Format and size, without decoding. Raises BadPicture."""
    if picture.startswith(b"\xff\xd8"):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(picture, strict=False)
        except (ValueError, KeyError) as error:  # KeyError: subsampling that it does not know
            raise BadPicture(f"no readable JPEG: {_why(error)}") from error
        orientation = _orientation(picture)
        if orientation > 4:
            height, width = width, height
        header = Header("jpg", width, height, orientation, colours in ("CMYK", "YCCK"))
    elif picture.startswith(b"\x89PNG\r\n\x1a\n") and picture[12:16] == b"IHDR" and len(picture) >= 33:
        header = Header("png", *struct.unpack(">II", picture[16:24]))
    elif picture.startswith(b"RIFF") and picture[8:12] == b"WEBP" and len(picture) >= 30:
        header = Header("webp", *_webp_size(picture))
    else:
        raise BadPicture("neither JPEG, PNG nor WebP")
    if not (0 < header.width <= MAX_SIDE and 0 < header.height <= MAX_SIDE):
        raise BadPicture(f"{header.width} x {header.height} pixels")
    if header.width * header.height > MAX_PIXELS:
        raise BadPicture(f"{header.width} x {header.height} pixels are more than {MAX_PIXELS}")
    return header


def decode(picture: bytes, header: Header | None = None, shrink: int = 1) -> NDArray[np.uint8]:
    """Pixels uint8 `[height, width, 3]`, red, green, blue, upright. Raises BadPicture.

    shrink: 1, 2, 4 or 8: a JPEG comes smaller by this factor (rounded up), smoothed, at half the time; others do not.
    """
    header = read_header(picture) if header is None else header
    if header.format == "jpg":
        pixels = _jpeg(picture, header, shrink)
    else:
        pixels = _with_opencv(picture, header)
    return _upright(pixels, header.orientation)


def _jpeg(picture: bytes, header: Header, shrink: int) -> NDArray[np.uint8]:
    least = {}
    if shrink > 1:
        height, width = header.height, header.width
        if header.orientation > 4:
            height, width = width, height
        least = {"min_height": -(-height // shrink), "min_width": -(-width // shrink)}
    try:
        if not header.cmyk:
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(picture, "RGB", **least)
            return pixels
        inks: NDArray[np.uint8] = simplejpeg.decode_jpeg(picture, "CMYK", **least)  # as Adobe has them: 255 is no ink
    except (ValueError, KeyError) as error:
        raise BadPicture(f"corrupt JPEG: {_why(error)}") from error
    return _product(inks[..., :3], inks[..., 3:], 0)


def _product(colours: NDArray[np.uint8], share: NDArray[np.uint8], rest: int) -> NDArray[np.uint8]:
    """Of each colour its `share` of 255, and of `rest` what is left; some rows at a time, for bounded memory."""
    out = np.empty(colours.shape, dtype=np.uint8)
    for top in range(0, len(out), _ROWS):
        part, of = colours[top : top + _ROWS].astype(np.uint16), share[top : top + _ROWS].astype(np.uint16)
        out[top : top + _ROWS] = (part * of + rest * (255 - of) + 127) // 255
    return out


def _why(error: Exception) -> str:
    return "truncated, or of unknown subsampling" if isinstance(error, KeyError) else str(error)


def _with_opencv(picture: bytes, header: Header) -> NDArray[np.uint8]:
    if header.format == "webp" and len(picture) < 8 + struct.unpack("<I", picture[4:8])[0]:
        raise BadPicture("truncated WebP")
    if header.format == "png":
        picture = _bare_png(picture)
    try:
        pixels: Any = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise BadPicture(f"corrupt {header.format}: {error.err}") from error
    if pixels is None or pixels.shape[:2] != (header.height, header.width):
        raise BadPicture(f"corrupt {header.format}")
    if pixels.dtype == np.uint16:
        pixels = np.ascontiguousarray(pixels).view(np.uint8)[..., _UPPER::2].reshape(pixels.shape)
    if pixels.dtype != np.uint8:
        raise BadPicture(f"{header.format} of {pixels.dtype}")
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB).astype(np.uint8, copy=False)
    if pixels.shape[2] == 4:
        return _product(pixels[..., 2::-1], pixels[..., 3:], 255)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def _bare_png(picture: bytes) -> bytes:
    """The PNG's critical chunks and tRNS, which alone decide on the pixels; what breaks off stays, for the decoder.

    libpng writes a line to stderr for every odd colour profile, and there are many.
    """
    kept, at = [picture[:8]], 8
    while at + 8 <= len(picture):
        size, kind = struct.unpack_from(">I4s", picture, at)
        if kind[:1].isupper() or kind == b"tRNS" or at + 12 + size > len(picture):
            kept.append(picture[at : at + 12 + size])
        at += 12 + size
        if kind == b"IEND":
            break
    return b"".join(kept)


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The picture turned as EXIF's orientation says."""
    if orientation == 1:
        return pixels
    if orientation in (2, 4):
        turned = cv2.flip(pixels, 1 if orientation == 2 else 0)
    elif orientation == 5:
        turned = cv2.transpose(pixels)
    elif orientation == 7:
        turned = cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180)
    else:
        turned = cv2.rotate(pixels, _ROTATIONS[orientation])
    return turned.astype(np.uint8, copy=False)


def _orientation(jpeg: bytes) -> int:
    """EXIF's orientation, 1 if there is none that can be read."""
    start = jpeg.find(b"Exif\0\0", 2, _EXIF_SEARCH)
    if start < 0:
        return 1
    tiff = memoryview(jpeg)[start + 6 : start + 6 + (1 << 16)]
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]))
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, at)
        for number in range(min(entries, 512)):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, at + 2 + 12 * number)
            if tag == 0x0112 and kind == 3:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _webp_size(picture: bytes) -> tuple[int, int]:
    """Width and height of the three kinds of WebP (RFC 9649)."""
    kind = picture[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(picture[24:27], "little"), 1 + int.from_bytes(picture[27:30], "little")
    if kind == b"VP8L" and picture[20] == 0x2F:
        bits = int.from_bytes(picture[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and picture[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", picture[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise BadPicture("no readable WebP")
