"""Pictures, as SVG. Colours are the style sheet's classes; every bar says its number when pointed at."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data_pipeline.report.markup import Html, element
from data_pipeline.report.numbers import count, share, short

COLOURS = 8
"""Colours for corpora; after that they repeat."""

#: Width of a narrow page and of a letter, in pixels: which labels have room.
_NARROW, _LETTER = 660.0, 7.5
_WIDTH, _HEIGHT = 520, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 14, 42


@dataclass(frozen=True)
class Column:
    """A column of a histogram. left, right: its edges on the axis, 0 to 1. label: the bin in words."""

    left: float
    right: float
    documents: int
    label: str


def described(key: str, title: str, description: str, *content: Html | None, **attributes: str | float) -> Html:
    """An SVG with its title and description. key: unique on the page."""
    return element(
        "svg",
        element("title", title, id=f"{key}-title"),
        element("desc", description, id=f"{key}-desc"),
        *content,
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
        **attributes,
    )


def _picture(key: str, title: str, description: str, size: tuple[float, float], *content: Html) -> Html:
    """A picture that scales as a whole."""
    box = f"0 0 {size[0]:g} {size[1]:g}"
    return described(key, title, description, *content, viewBox=box, class_="chart")


def histogram(
    key: str,
    title: str,
    description: str,
    columns: Sequence[Column],
    ticks: Sequence[tuple[float, str]],
    axis: tuple[str, str],
    mark: tuple[float, str] | None = None,
    logarithmic: bool = False,
) -> Html:
    """Columns over an axis. ticks: (position on the axis, label). axis: its name, and what the columns count. mark: a
    line at a position, with a label. logarithmic: the columns' heights."""
    top = max((column.documents for column in columns), default=0)
    levels = _powers(top) if logarithmic else _steps(top)
    high = levels[-1]

    def up(value: float) -> float:
        fraction = _logarithm(value) / _logarithm(high) if logarithmic else value / high
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * fraction

    grid = [
        piece for level in levels for piece in (_level(up(level)), _text(_LEFT - 7, up(level) + 4, short(level), "end"))
    ]
    return _picture(
        key,
        title,
        description,
        (_WIDTH, _HEIGHT),
        *grid,
        *(_column(column, up) for column in columns if column.documents),
        *_ticks(ticks),
        *(_mark(*mark) if mark else ()),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, axis[0], "middle", "name"),
        _text(_LEFT, 9, axis[1] + (", logarithmic" if logarithmic else ""), "start", "name"),
    )


def roc(key: str, points: Sequence[Sequence[float]], auc: float) -> Html:
    """The curve over (false positive rate, true positive rate), with the diagonal of a coin toss."""
    side, left, top = 300.0, 62.0, 12.0

    def place(x: float, y: float) -> str:
        return f"{left + side * min(max(x, 0.0), 1.0):.2f} {top + side * (1 - min(max(y, 0.0), 1.0)):.2f}"

    path = "M" + " L".join(place(x, y) for x, y in points)
    marks = [0, 0.25, 0.5, 0.75, 1]
    lines = [
        element("path", d=f"M{place(a, 0)} L{place(a, 1)} M{place(0, a)} L{place(1, a)}", class_="grid") for a in marks
    ]
    labels = [_text(left + side * a, top + side + 17, f"{a:g}", "middle") for a in marks]
    labels += [_text(left - 7, top + side * (1 - a) + 4, f"{a:g}", "end") for a in marks]
    middle = top + side / 2
    return _picture(
        key,
        "ROC curve of the quality filter",
        f"True over false positive rate at every threshold; the area under the curve is {auc:.4f}.",
        (left + side + 14, top + side + 42),
        *lines,
        *labels,
        element("path", d=f"{path} L{place(1, 0)} L{place(0, 0)} Z", class_="area"),
        element("path", d=f"M{place(0, 0)} L{place(1, 1)}", class_="diagonal"),
        element("path", d=path, class_="curve"),
        _text(left + side * 0.96, top + side * 0.9, f"AUC {auc:.4f}", "end", "big"),
        _text(left + side / 2, top + side + 37, "raw documents that pass for curated", "middle", "name"),
        element(
            "text",
            "curated documents recognised",
            x=11,
            y=middle,
            text_anchor="middle",
            transform=f"rotate(-90 11 {middle:g})",
            class_="name",
        ),
    )


def mix(key: str, names: Sequence[str], there: Sequence[float], drawn: Sequence[float], training: str) -> Html:
    """Two bars, the tokens that are there and those that a training draws, with a band for each corpus between them.

    there, drawn: shares, each adding up to 1. The picture stretches with the page, its letters do not.
    """
    bar, gap, top = 34, 66, 44
    low = top + bar + gap
    begins = [list(itertools.accumulate(shares, initial=0.0)) for shares in (there, drawn)]
    bars: list[Html | None] = []
    labels = [
        _text(0, 13, "tokens that are there", "start", "name"),
        _text(0, low + bar + 40, f"drawn in {training}", "start", "name"),
    ]
    spoken = []
    for place, (name, have, draw) in enumerate(zip(names, there, drawn, strict=True)):
        (above, _), (below, _) = ((begin[place], begin[place + 1]) for begin in begins)
        spoken.append(f"{name}: {share(have, 1)} of the tokens that are there, {share(draw, 1)} of those drawn")
        band = _band(above, have, below, draw, bar, bar + gap)
        boxes = [element("rect", x=1000 * above, width=1000 * have, height=bar)]
        boxes.append(element("rect", x=1000 * below, y=bar + gap, width=1000 * draw, height=bar))
        colour = f"colour-{place % COLOURS}"
        bars.append(
            element("g", element("title", spoken[-1]), element("path", d=band, class_="band"), *boxes, class_=colour)
        )
        labels += _segment(name, have, above, top - 9)
        labels += _segment(name, draw, below, low + bar + 19)
    stretched = element(
        "svg",
        *bars,
        y=top,
        height=bar + gap + bar,
        width="100%",
        viewBox=f"0 0 1000 {bar + gap + bar}",
        preserveAspectRatio="none",
    )
    title = f"The mix: tokens there, and drawn in {training}"
    return described(key, title, "; ".join(spoken), stretched, *labels, height=low + bar + 46, class_="chart stretched")


def _band(above: float, have: float, below: float, draw: float, begin: float, end: float) -> str:
    """From a span of the upper bar down to a span of the lower one. In thousandths of the width."""
    left, right, low_left, low_right = (1000 * x for x in (above, above + have, below, below + draw))
    middle = (begin + end) / 2
    return (
        f"M{left:.2f} {begin} H{right:.2f} C{right:.2f} {middle} {low_right:.2f} {middle} {low_right:.2f} {end} "
        f"H{low_left:.2f} C{low_left:.2f} {middle} {left:.2f} {middle} {left:.2f} {begin} Z"
    )


def _segment(name: str, part: float, begin: float, y: float) -> list[Html]:
    """The longer of "name 12.3 %" and "name" that fits on a narrow page, else nothing."""
    for label in (f"{name} {share(part, 1)}", name):
        if len(label) * _LETTER < part * _NARROW:
            return [element("text", label, x=f"{100 * begin:.2f}%", y=y, class_="segment")]
    return []


def _column(column: Column, up: Callable[[float], float]) -> Html:
    inner = _WIDTH - _LEFT - _RIGHT
    base = up(0)
    height = max(base - up(column.documents), 1.0)
    return element(
        "rect",
        element("title", f"{column.label}: {count(column.documents)}"),
        x=_LEFT + inner * column.left + 0.5,
        y=base - height,
        width=max(inner * (column.right - column.left) - 1, 0.8),
        height=height,
        class_="documents",
    )


def _ticks(ticks: Sequence[tuple[float, str]]) -> list[Html]:
    base, inner = _HEIGHT - _BOTTOM, _WIDTH - _LEFT - _RIGHT
    pieces = [element("path", d=f"M{_LEFT} {base} H{_WIDTH - _RIGHT}", class_="axis")]
    for position, label in ticks:
        x = _LEFT + inner * position
        pieces += [element("path", d=f"M{x:.2f} {base} v4", class_="axis"), _text(x, base + 17, label, "middle")]
    return pieces


def _mark(position: float, label: str) -> list[Html]:
    x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * position
    anchor, away = ("start", 5) if position < 0.6 else ("end", -5)
    line = element("path", d=f"M{x:.2f} {_TOP} V{_HEIGHT - _BOTTOM}", class_="median")
    return [line, _text(x + away, _TOP + 9, label, anchor, "halo")]


def _level(y: float) -> Html:
    return element("path", d=f"M{_LEFT} {y:.2f} H{_WIDTH - _RIGHT}", class_="grid")


def _text(x: float, y: float, content: str, anchor: str, kind: str | None = None) -> Html:
    return element("text", content, x=float(x), y=float(y), text_anchor=anchor, class_=kind)


def _steps(top: float) -> list[float]:
    """Three to six round levels from 0 to at least `top`."""
    if top <= 0:
        return [0, 1]
    unit = 10.0 ** math.floor(math.log10(top / 3))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if top / (unit * factor) <= 5)
    step = max(1.0, step)
    return [step * level for level in range(math.ceil(top / step) + 1)]


def _powers(top: float) -> list[float]:
    """0, 1, 10, 100, ..., to at least `top`."""
    return [0.0] + [10.0**power for power in range(max(1, math.ceil(math.log10(max(top, 1)))) + 1)]


def _logarithm(value: float) -> float:
    """0 below half a document, so that a single one has a height."""
    return math.log10(max(value, 0.5) / 0.5)
