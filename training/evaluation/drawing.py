"""Light canvas, legible text and a colour scale, with Pillow alone."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Picture = NDArray[np.uint8]
"""[H, W, 3]"""

PAPER: Colour = (255, 255, 255)
INK: Colour = (32, 36, 44)
FAINT: Colour = (112, 118, 128)
LINE: Colour = (206, 210, 216)
RIGHT: Colour = (0, 130, 74)
WRONG: Colour = (190, 194, 200)

TITLE, BODY, SMALL = 20, 15, 13  # pixels
MARGIN = 16

# Light to dark in even steps of lightness, so that it reads in grey, too.
_SCALE = ((247, 249, 252), (205, 224, 241), (137, 190, 220), (65, 146, 198), (17, 94, 166), (8, 40, 92))


@functools.lru_cache(maxsize=8)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which every installation has. Letters that it lacks, such as Chinese ones, show as boxes."""
    return ImageFont.load_default(size=size)


def canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (width, height), PAPER)
    return image, ImageDraw.Draw(image)


def array(image: Image.Image) -> Picture:
    return np.asarray(image, dtype=np.uint8).copy()


def width_of(text: str, size: int) -> int:
    return round(font(size).getlength(text))


def plain(text: str) -> str:
    """On one line, without the accents that Pillow's font has no letters for."""
    return "".join(c for c in unicodedata.normalize("NFKD", " ".join(text.split())) if not unicodedata.combining(c))


def shorten(text: str, size: int, width: int, *, ending: int = 0) -> str:
    """On one line; what is longer than `width` pixels loses its end, or what stands before its last `ending`
    characters, to an ellipsis.
    """
    text = plain(text)
    if width_of(text, size) <= width:
        return text
    tail = "…" + (text[-ending:].lstrip() if ending else "")
    if width_of(tail, size) > width:
        tail = "…"
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if width_of(text[:middle].rstrip() + tail, size) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + tail


def wrap(text: str, size: int, width: int, lines: int) -> list[str]:
    """At most `lines` lines of at most `width` pixels, cut with an ellipsis."""
    words = plain(text).split()
    wrapped: list[str] = []
    while words and len(wrapped) < lines - 1:
        taken = 1
        while taken < len(words) and width_of(" ".join(words[: taken + 1]), size) <= width:
            taken += 1
        if width_of(" ".join(words[:taken]), size) > width:
            break  # a word longer than a line
        wrapped.append(" ".join(words[:taken]))
        words = words[taken:]
    if words:
        wrapped.append(shorten(" ".join(words), size, width))
    return wrapped


def write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int = BODY,
    colour: Colour = INK,
    anchor: str = "la",
) -> None:
    draw.text(at, text, fill=colour, font=font(size), anchor=anchor)


def write_upright(
    image: Image.Image, at: tuple[int, int], text: str, size: int = BODY, colour: Colour = INK, *, centred: bool = False
) -> None:
    """Text that reads upwards, centred on the column `at[0]`; from `at[1]` up, or centred on it."""
    height = size + size // 2
    strip = Image.new("RGB", (max(width_of(text, size) + 2, 1), height), PAPER)
    write(ImageDraw.Draw(strip), (1, height / 2), text, size, colour, "lm")
    turned = strip.transpose(Image.Transpose.ROTATE_90)
    top = at[1] - (turned.height // 2 if centred else turned.height)
    image.paste(turned, (at[0] - turned.width // 2, top))


def heading(draw: ImageDraw.ImageDraw, title: str, explanation: str, width: int) -> int:
    """Title and a line that says how to read what follows; returns where that may begin."""
    write(draw, (MARGIN, MARGIN - 2), shorten(title, TITLE, width - 2 * MARGIN), TITLE)
    below = MARGIN + TITLE + 8
    for line in wrap(explanation, SMALL, width - 2 * MARGIN, 3):
        write(draw, (MARGIN, below), line, SMALL, FAINT)
        below += SMALL + 6
    return below + 10


def colours(values: NDArray[np.float64]) -> Picture:
    """Values in 0 … 1 on the colour scale: [..., 3] uint8."""
    stops = np.linspace(0.0, 1.0, len(_SCALE))
    channels = [np.interp(values, stops, [colour[c] for colour in _SCALE]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def ink_on(value: float) -> Colour:
    """What can be read on the colour of a value."""
    return PAPER if value > 0.5 else INK


def legend(
    image: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], height: int, labels: Sequence[tuple[float, str]]
) -> None:
    """The colour scale upright with its top left at `at`; labels as (place in 0 … 1, text)."""
    bar = colours(np.linspace(1.0, 0.0, height)[:, None].repeat(16, axis=1))
    image.paste(Image.fromarray(bar), at)
    draw.rectangle((at[0] - 1, at[1] - 1, at[0] + 16, at[1] + height), outline=LINE)
    for place, text in labels:
        y = at[1] + (1.0 - place) * (height - 1)
        draw.line((at[0] + 16, y, at[0] + 20, y), fill=FAINT)
        write(draw, (at[0] + 24, y), text, SMALL, FAINT, "lm")


def thumbnail(picture: Picture, width: int, height: int) -> Image.Image:
    """A picture [h, w, 3] that fits the box, its shape kept; a small one grows by whole pixels."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    scale = min(width / image.width, height / image.height)
    if scale >= 2:
        scale = int(scale)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    return image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)


def paste_in(image: Image.Image, picture: Picture, box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """A picture in the middle of a box (left, top, width, height); returns the corners that it covers."""
    left, top, width, height = box
    small = thumbnail(picture, width, height)
    x, y = left + (width - small.width) // 2, top + (height - small.height) // 2
    image.paste(small, (x, y))
    return x, y, x + small.width - 1, y + small.height - 1


def tick(draw: ImageDraw.ImageDraw, at: tuple[int, int], size: int) -> None:
    """A tick on a disc, its centre at `at`: right, also to who cannot tell green from grey."""
    x, y, r = at[0], at[1], size // 2
    draw.ellipse((x - r, y - r, x + r, y + r), fill=RIGHT, outline=PAPER)
    draw.line(
        (x - 0.5 * r, y + 0.05 * r, x - 0.12 * r, y + 0.45 * r, x + 0.52 * r, y - 0.42 * r),
        fill=PAPER,
        width=max(r // 4, 2),
        joint="curve",
    )


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def ordinal(number: int) -> str:
    """1 → 1st"""
    last = number % 10 if number % 100 not in (11, 12, 13) else 0
    return f"{number:,}" + {1: "st", 2: "nd", 3: "rd"}.get(last, "th")
