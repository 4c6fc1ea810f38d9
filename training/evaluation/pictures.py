"""What scores look like: confusion matrix, similarity matrix, and what was found for a few queries.

All return uint8 `[H, W, 3]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.evaluation import drawing
from training.evaluation.drawing import BODY, FAINT, INK, LINE, MARGIN, RIGHT, SMALL, WRONG, Picture

_LABELLED = 24  # classes that still have room for their names
_MOST_CELLS = 360
_LEGEND = 84
_THUMB = 104


@dataclass(frozen=True)
class Found:
    """A picture that was found, or a caption."""

    item: Picture | str
    right: bool
    score: float
    """Cosine."""


@dataclass(frozen=True)
class Example:
    """A query and what was found for it, best first."""

    query: Picture | str
    found: Sequence[Found]
    rank: int
    """Where the first right answer stands, from 1."""


def confusion_matrix(
    labels: NDArray[np.int64], predictions: NDArray[np.int64], classes: Sequence[str], title: str
) -> Picture:
    """How often pictures of each class (rows) were taken for each class (columns), as shares of the row.

    Named with the counts up to 24 classes; a heat map beyond, of equally large blocks of classes above 360.
    """
    block = -(-len(classes) // _MOST_CELLS)
    cells = -(-len(classes) // block)
    flat = np.bincount((labels // block) * cells + predictions // block, minlength=cells * cells)
    counts = flat.reshape(cells, cells)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    right = float((labels == predictions).mean())
    said = f"{len(labels):,} pictures, {drawing.percent(right, 1)} right. Row: true class. Column: class chosen. "
    if cells <= _LABELLED:
        said += "Colour: share of the row's pictures; number: how many."
        return _labelled(counts, shares, classes, title, said)
    unit = f"blocks of {block} neighbouring classes" if block > 1 else "classes"
    said += f"Colour: share of the row's pictures. {cells} {unit}; right answers are on the diagonal."
    return _heat_map(shares, len(classes), title, said)


def _labelled(
    counts: NDArray[np.int64], shares: NDArray[np.float64], classes: Sequence[str], title: str, said: str
) -> Picture:
    cells = len(classes)
    cell = 44 if cells <= 12 else 34
    names = [drawing.shorten(name, BODY, 170, ending=8) for name in classes]
    side = max(max(drawing.width_of(name, BODY) for name in names) + 12, 40)
    width = max(MARGIN + 24 + side + cells * cell + 28 + _LEGEND, 520)
    image, draw = drawing.canvas(width, 140 + side + cells * cell)
    top = drawing.heading(draw, title, said, width) + 22 + side
    left = MARGIN + 24 + side
    image, draw = _grow(image, top + cells * cell + MARGIN)
    drawing.write(draw, (left + cells * cell / 2, top - side - 14), "chosen", SMALL, FAINT, "mm")
    drawing.write_upright(image, (MARGIN + 8, top + cells * cell // 2), "true", SMALL, FAINT, centred=True)
    _cells(image, drawing.colours(shares), left, top, cell)
    size = SMALL if counts.max() < 10_000 else 11
    for row in range(cells):
        drawing.write(draw, (left - 8, top + (row + 0.5) * cell), names[row], BODY, INK, "rm")
        drawing.write_upright(image, (left + row * cell + cell // 2, top - 6), names[row])
        for column in np.flatnonzero(counts[row]).tolist():
            middle = (left + (column + 0.5) * cell, top + (row + 0.5) * cell)
            colour = drawing.ink_on(shares[row, column])
            drawing.write(draw, middle, _compact(counts[row, column]), size, colour, "mm")
    _grid(draw, left, top, cells, cells, cell)
    labels = [(0.0, "0 %"), (0.5, "50 %"), (1.0, "100 %")]
    drawing.legend(image, draw, (left + cells * cell + 28, top), max(min(cells * cell, 220), 80), labels)
    return drawing.array(image)


def _heat_map(shares: NDArray[np.float64], classes: int, title: str, said: str) -> Picture:
    cells = len(shares)
    cell = max(720 // cells, 1)
    side = cells * cell
    left = MARGIN + 70
    width = left + side + 28 + _LEGEND
    image, draw = drawing.canvas(width, side + 200)
    top = drawing.heading(draw, title, said, width) + 40
    image, draw = _grow(image, top + side + MARGIN)
    # Most shares are small: the root shows them.
    _cells(image, drawing.colours(np.sqrt(shares)), left, top, cell)
    draw.rectangle((left - 1, top - 1, left + side, top + side), outline=LINE)
    drawing.write(draw, (left + side / 2, top - 34), "chosen", SMALL, FAINT, "mm")
    drawing.write_upright(image, (MARGIN + 8, top + side // 2), "true", SMALL, FAINT, centred=True)
    for number in _round_numbers(classes):
        place = number / classes * side
        draw.line((left - 6, top + place, left - 2, top + place), fill=FAINT)
        drawing.write(draw, (left - 10, top + place), f"{number:,}", SMALL, FAINT, "rm")
        draw.line((left + place, top - 6, left + place, top - 2), fill=FAINT)
        drawing.write(draw, (left + place, top - 15), f"{number:,}", SMALL, FAINT, "mm")
    labels = [(share**0.5, drawing.percent(share)) for share in (0.0, 0.05, 0.25, 0.5, 1.0)]
    drawing.legend(image, draw, (left + side + 28, top), 260, labels)
    return drawing.array(image)


def similarity_matrix(
    cosines: NDArray[np.float32], pictures: Sequence[Picture], captions: Sequence[str], title: str
) -> Picture:
    """Cosines of captions (rows) and pictures (columns), `[n, n]`; pair i is in row and column i."""
    count = len(captions)
    cell = 60 if count <= 12 else 44
    texts = [drawing.wrap(caption, BODY if count <= 12 else SMALL, 250, 2) for caption in captions]
    size = BODY if count <= 12 else SMALL
    side = max(max(drawing.width_of(line, size) for lines in texts for line in lines or [""]) + 14, 60)
    left = MARGIN + side
    width = max(left + count * cell + 28 + _LEGEND, 560)
    said = (
        "Row: a text. Column: a picture. Colour and number: cosine of their features. Framed: those that belong "
        "together; each should be the darkest of its row and column."
    )
    image, draw = drawing.canvas(width, 200 + (count + 1) * cell)
    top = drawing.heading(draw, title, said, width) + cell + 6
    image, draw = _grow(image, top + count * cell + MARGIN)
    low, high = float(cosines.min()), float(cosines.max())
    scaled = (cosines.astype(np.float64) - low) / max(high - low, 1e-9)
    _cells(image, drawing.colours(scaled), left, top, cell)
    for row in range(count):
        drawing.paste_in(image, pictures[row], (left + row * cell + 2, top - cell - 2, cell - 4, cell - 4))
        height = len(texts[row]) * (size + 3)
        for number, line in enumerate(texts[row]):
            y = top + (row + 0.5) * cell - height / 2 + (number + 0.5) * (size + 3)
            drawing.write(draw, (left - 10, y), line, size, INK, "rm")
        for column in range(count):
            middle = (left + (column + 0.5) * cell, top + (row + 0.5) * cell)
            colour = drawing.ink_on(scaled[row, column])
            drawing.write(draw, middle, f"{cosines[row, column]:.2f}", SMALL, colour, "mm")
    _grid(draw, left, top, count, count, cell)
    for place in range(count):
        x, y = left + place * cell, top + place * cell
        draw.rectangle((x, y, x + cell, y + cell), outline=RIGHT, width=3)
    labels = [(0.0, f"{low:.2f}"), (0.5, f"{(low + high) / 2:.2f}"), (1.0, f"{high:.2f}")]
    drawing.legend(image, draw, (left + count * cell + 28, top), max(min(count * cell, 220), 60), labels)
    return drawing.array(image)


def pictures_found(examples: Sequence[Example], title: str) -> Picture:
    """Captions on the left, on the right the pictures that are the most like them, the right ones framed."""
    most = max(len(example.found) for example in examples)
    step = _THUMB + 14
    shown = [found.item for example in examples for found in example.found if not isinstance(found.item, str)]
    tall = max(max(drawing.thumbnail(picture, _THUMB, _THUMB).height for picture in shown), 4 * (BODY + 4))
    height = tall + 38
    left = MARGIN + 250
    width = left + most * step + 110
    said = (
        "Left: the text asked for. Then the pictures most like it, best first, with their cosines; right ones framed."
    )
    image, draw = drawing.canvas(width, 200 + len(examples) * height)
    top = drawing.heading(draw, title, said, width) + 8
    image, draw = _grow(image, top + len(examples) * height + 4)
    for example in examples:
        lines = drawing.wrap(str(example.query), BODY, 228, 4)
        first = top + tall / 2 - len(lines) * (BODY + 4) / 2
        for number, line in enumerate(lines):
            drawing.write(draw, (MARGIN, first + number * (BODY + 4)), line)
        for place, found in enumerate(example.found):
            assert not isinstance(found.item, str)
            box = (left + place * step, top, _THUMB, tall)
            x0, y0, x1, y1 = drawing.paste_in(image, found.item, box)
            frame = 4 if found.right else 1
            outline = RIGHT if found.right else WRONG
            draw.rectangle((x0 - frame, y0 - frame, x1 + frame, y1 + frame), outline=outline, width=frame)
            if found.right:
                drawing.tick(draw, (x1, y0), 20)
            below = (box[0] + _THUMB / 2, y1 + 15)
            drawing.write(draw, below, f"{found.score:.2f}", SMALL, RIGHT if found.right else FAINT, "mm")
        _say_rank(draw, example, (left + most * step + 2, top + tall // 2))
        top += height
    return drawing.array(image)


def captions_found(examples: Sequence[Example], title: str) -> Picture:
    """Pictures on the left, on the right the captions that are the most like them, the right ones in green."""
    line = BODY + 9
    most = max(len(example.found) for example in examples)
    height = max(_THUMB, most * line) + 22
    left, wide = MARGIN + _THUMB + 28, 430
    width = left + 150 + wide + 110
    said = "Left: the picture. Then the texts most like it, best first, with their cosines as bars; right ones ticked."
    image, draw = drawing.canvas(width, 200 + len(examples) * height)
    top = drawing.heading(draw, title, said, width)
    image, draw = _grow(image, top + len(examples) * height + 4)
    for example in examples:
        assert not isinstance(example.query, str)
        middle = top + (height - 22) // 2
        corners = drawing.paste_in(image, example.query, (MARGIN, middle - _THUMB // 2, _THUMB, _THUMB))
        draw.rectangle((corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1), outline=WRONG)
        first = middle - len(example.found) * line // 2 + line // 2
        for place, found in enumerate(example.found):
            y = first + place * line
            colour = RIGHT if found.right else INK
            draw.rectangle((left, y - 6, left + 80, y + 6), outline=LINE)
            long = round(80 * min(max(found.score, 0.0), 1.0))
            draw.rectangle((left, y - 6, left + long, y + 6), fill=RIGHT if found.right else WRONG)
            drawing.write(draw, (left + 88, y), f"{found.score:.2f}", SMALL, FAINT, "lm")
            if found.right:
                drawing.tick(draw, (left + 134, y), 16)
            drawing.write(draw, (left + 150, y), drawing.shorten(str(found.item), BODY, wide), BODY, colour, "lm")
        _say_rank(draw, example, (left + 150 + wide + 2, middle))
        top += height
        draw.line((MARGIN, top - 11, width - MARGIN, top - 11), fill=LINE)
    return drawing.array(image)


def _say_rank(draw: drawing.ImageDraw.ImageDraw, example: Example, at: tuple[int, int]) -> None:
    """Where the right answer stands, if it is not to be seen."""
    if not any(found.right for found in example.found):
        drawing.write(draw, (at[0], at[1] - 9), "right one:", SMALL, FAINT, "lm")
        drawing.write(draw, (at[0], at[1] + 9), drawing.ordinal(example.rank), BODY, INK, "lm")


def _cells(image: Image.Image, colours: Picture, left: int, top: int, cell: int) -> None:
    image.paste(Image.fromarray(colours.repeat(cell, axis=0).repeat(cell, axis=1)), (left, top))


def _grid(draw: drawing.ImageDraw.ImageDraw, left: int, top: int, rows: int, columns: int, cell: int) -> None:
    for row in range(rows + 1):
        draw.line((left, top + row * cell, left + columns * cell, top + row * cell), fill=LINE)
    for column in range(columns + 1):
        draw.line((left + column * cell, top, left + column * cell, top + rows * cell), fill=LINE)


def _grow(image: Image.Image, height: int) -> tuple[Image.Image, drawing.ImageDraw.ImageDraw]:
    """The same canvas at the height that turned out to be needed."""
    grown, draw = drawing.canvas(image.width, height)
    grown.paste(image, (0, 0))
    return grown, draw


def _round_numbers(count: int) -> list[int]:
    """0, and up to five more round numbers below `count`."""
    step = 10 ** (len(str(count)) - 1)
    while count / step < 3:
        step //= 2 if str(step)[0] != "5" else 5
        step = max(step, 1)
    while count / step > 6:
        step *= 2
    return list(range(0, count, step))


def _compact(count: int) -> str:
    return f"{count}" if count < 100_000 else f"{count / 1000:.0f}k"
