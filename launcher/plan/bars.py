"""Memory as a picture: a bar for each pipeline stage, part by part, against what a GPU has."""

from __future__ import annotations

import math
from collections.abc import Sequence

from data_pipeline.report.charts import described
from data_pipeline.report.markup import Html, element
from launcher.plan.figures import Estimate, StageEstimate
from launcher.plan.terms import MEMORY
from launcher.tables import size

WIDTH, LABEL, RIGHT = 1060.0, 74.0, 74.0
"""Of the picture, of the stages' names and of the sums, in its own units."""
TOP, BOTTOM = 24.0, 26.0


def memory_bars(estimate: Estimate) -> Html:
    """The picture and its legend."""
    stages, limit, usable = estimate.stages, estimate.accelerator.memory_bytes, estimate.accelerator.usable_bytes
    high = 1.04 * max(limit, *(stage.memory.peak for stage in stages))
    pitch = max(9.0, min(34.0, 420.0 / len(stages)))
    every = math.ceil(13.0 / pitch)
    rows = [
        piece
        for place, stage in enumerate(stages)
        for piece in _bar(stage, TOP + pitch * place, pitch, high, usable, len(stages) > 1, place % every == 0)
    ]
    below = TOP + pitch * len(stages)
    at = _at(limit, high)
    edge = "end" if at > WIDTH - RIGHT - 150 else "middle"
    kept_back = element(
        "rect", x=_at(usable, high), y=TOP, width=at - _at(usable, high), height=below - TOP, class_="reserve"
    )
    line = element("path", d=f"M{at:.1f} {TOP - 6:g} V{below + 2:g}", class_="limit")
    label = element(
        "text",
        f"{estimate.accelerator.name}: {size(limit)}, {size(limit - usable)} of it kept back",
        x=at,
        y=TOP - 10,
        text_anchor=edge,
        class_="said",
    )
    said = "; ".join(_spoken(stage) for stage in stages)
    picture = described(
        "memory",
        "Memory of a rank of each pipeline stage at its peak",
        said,
        *_axis(high, below),
        kept_back,
        *rows,
        line,
        label,
        viewBox=f"0 0 {WIDTH:g} {below + BOTTOM:g}",
        class_="plan",
    )
    return element("figure", picture, _legend(stages))


def _at(bytes_: float, high: float) -> float:
    return LABEL + (WIDTH - LABEL - RIGHT) * bytes_ / high


def _bar(
    stage: StageEstimate, top: float, pitch: float, high: float, usable: float, staged: bool, labelled: bool
) -> list[Html]:
    height = pitch - min(4.0, 0.25 * pitch)
    pieces, before = [], 0
    for part in MEMORY:
        value = getattr(stage.memory, part)
        if not value:
            continue
        left, right = _at(before, high), _at(before + value, high)
        box = element("rect", x=left, y=top, width=right - left, height=height, class_=f"part m-{part}")
        pieces.append(element("g", element("title", f"{_name(stage, staged)}: {part} {size(value)}"), box))
        if right - left > 7.0 * len(part) + 10 and height >= 14:
            pieces.append(element("text", part, x=(left + right) / 2, y=top + height / 2 + 4, class_="on"))
        before += value
    if labelled:
        middle = top + height / 2 + 4
        over = " over" if before > usable else ""
        pieces.append(element("text", _name(stage, staged), x=0.0, y=middle))
        pieces.append(element("text", size(before), x=WIDTH, y=middle, text_anchor="end", class_=f"said{over}"))
    return pieces


def _name(stage: StageEstimate, staged: bool) -> str:
    return f"stage {stage.stage}" if staged else "every rank"


def _spoken(stage: StageEstimate) -> str:
    parts = ", ".join(f"{part} {size(getattr(stage.memory, part))}" for part in MEMORY if getattr(stage.memory, part))
    return f"stage {stage.stage}: {size(stage.memory.peak)} ({parts})"


def _axis(high: float, below: float) -> list[Html]:
    """Round numbers of bytes under the bars."""
    unit = 10.0 ** math.floor(math.log10(high / 2))
    step = next(unit * factor for factor in (1, 2, 5, 10) if high / (unit * factor) <= 6)
    pieces = []
    for number in range(int(high / step) + 1):
        x = _at(number * step, high)
        pieces.append(element("path", d=f"M{x:.1f} {TOP:g} V{below:g}", class_="grid"))
        written = size(number * step).replace(".0", "") if number else "0"
        pieces.append(element("text", written, x=x, y=below + 16, text_anchor="middle"))
    return pieces


def _legend(stages: Sequence[StageEstimate]) -> Html:
    """Names in the order of the bars, with the sums of the fullest stage."""
    fullest = max(stages, key=lambda stage: stage.memory.peak)
    items = [
        element(
            "li",
            element("span", class_=f"swatch m-{part}", aria_hidden="true"),
            f"{part} ",
            element("b", size(getattr(fullest.memory, part))),
        )
        for part in MEMORY
    ]
    of = f"at the peak of stage {fullest.stage}, the fullest" if len(stages) > 1 else "at the peak"
    return element("ul", *items, element("li", of, class_="none"), class_="legend", aria_label="Legend")
