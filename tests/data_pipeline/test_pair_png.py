"""A PNG is decoded from the chunks that decide on its pixels: the same pixels, and no line of libpng's on stderr."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from data_pipeline.pairs.decode import BadPicture, _bare_png, decode
from tests.data_pipeline.pair_sets import smooth

PIXELS = smooth(37, 52, 1)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def odd(mode: str, **settings: object) -> bytes:
    """A PNG of this mode with a profile that is none, a gamma, a background and a text."""
    if mode == "I;16":
        image = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257 + PIXELS[..., 1])
    else:
        image = Image.fromarray(PIXELS).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(PIXELS[..., 1]))
    out = io.BytesIO()
    image.save(out, "PNG", icc_profile=b"no profile", **settings)
    plain = out.getvalue()
    more = chunk(b"gAMA", struct.pack(">I", 100_000)) + chunk(b"tEXt", b"Comment\0hello") + chunk(b"pHYs", b"\0" * 9)
    return plain[:33] + more + plain[33:] + b"what follows the end"


def sixteen_bits_of_colour() -> bytes:
    out = PIXELS.astype(np.uint16) * 257 + PIXELS[::-1]
    plain = cv2.imencode(".png", out)[1].tobytes()
    return plain[:33] + chunk(b"gAMA", struct.pack(">I", 45455)) + plain[33:]


@pytest.mark.parametrize(
    "picture",
    [
        *(odd(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        odd("P", transparency=3),
        odd("L", transparency=100),
        odd("RGB", transparency=(10, 20, 30)),
        sixteen_bits_of_colour(),
    ],
)
def test_the_pixels_are_those_of_the_whole_file_and_nothing_is_printed(
    picture: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_UNCHANGED)
    said = capfd.readouterr().err
    assert ("libpng warning: iCCP" in said) == (b"iCCP" in picture)
    bare = cv2.imdecode(np.frombuffer(_bare_png(picture), np.uint8), cv2.IMREAD_UNCHANGED)
    assert bare is not None and whole is not None
    assert bare.dtype == whole.dtype and np.array_equal(bare, whole)
    decode(picture)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("end", [40, 80, 200, -40, -24])
def test_a_png_that_breaks_off_is_told(end: int) -> None:
    with pytest.raises(BadPicture, match="corrupt png"):
        decode(odd("RGB")[:end])
