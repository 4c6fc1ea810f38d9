"""The time line of one step as a picture: what each pipeline stage does when, drawn from the schedule that runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from data_pipeline.report.charts import described
from data_pipeline.report.markup import Html, element
from launcher.plan.figures import Estimate, StageEstimate
from launcher.plan.schedule import Event, simulate
from launcher.plan.terms import seconds

WIDTH, LABEL = 1060.0, 74.0
"""Of the picture and of the stages' names, in its own units."""
TOP, BOTTOM = 8.0, 26.0
FEWEST = 8
"""Passes of the first stage that are shown at each end, where the middle is left out."""
SEAM = 0.8
"""What is left between two boxes."""
BREAK = 30.0
"""Width of what stands for the part that is left out."""
NAMES = {
    "forward": "forward",
    "backward": "backward",
    "recompute": "computed again",
    "tensor": "TP traffic",
    "handover": "PP traffic",
    "bubble": "bubble: waiting for a neighbour",
    "loss": "loss of the batch",
    "data": "DP traffic",
    "optimizer": "optimizer",
}
"""What is drawn, under the names that people read."""

MOST_LABELS = 600
"""Boxes that carry a letter and the number of their micro-batch, where there is room for it."""


class Span(NamedTuple):
    """What a stage does for a while; seconds from the step's start."""

    kind: str
    begin: float
    end: float
    label: str = ""
    """F3 and B3: the passes of the third micro-batch."""


@dataclass(frozen=True)
class Lane:
    """One stage: (kind, begin, end) of everything it does, in seconds."""

    stage: int
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Axis:
    """Seconds to places, where the middle of the step may be left out."""

    end: float
    cut: tuple[float, float] | None

    def at(self, second: float) -> float:
        inner = WIDTH - LABEL
        if self.cut is None:
            return LABEL + inner * second / self.end
        first, again = self.cut
        scale = (inner - BREAK) / (first + self.end - again)
        if second <= first:
            return LABEL + scale * second
        return WIDTH - scale * (self.end - second) if second >= again else LABEL + scale * first + BREAK / 2


def lanes_of(estimate: Estimate) -> list[Lane]:
    """What each stage does from the step's start to its end."""
    stages, step, chunks = estimate.stages, estimate.step, estimate.parallel.virtual_pipeline
    events = simulate(
        estimate.parallel,
        estimate.micro_batches,
        [sum(part for _, part in _shares(stage, chunks)["forward"]) for stage in stages],
        [sum(part for _, part in _shares(stage, chunks)["backward"]) for stage in stages],
        couples_batch=estimate.couples_batch,
    )
    loss: list[Span] = []
    if estimate.couples_batch:  # a loss over the whole batch comes after all forward passes, before the first backward
        known = events[0][estimate.micro_batches - 1].end
        loss = [Span("loss", known, known + step.batch_loss_seconds)]
        events = [[_later(one, step.batch_loss_seconds) if one.begin >= known else one for one in events[0]]]
    drained = max(of[-1].end for of in events)
    reduced = drained + step.data_seconds
    after = [Span("data", drained, reduced), Span("optimizer", reduced, reduced + step.optimizer_seconds)]
    return [
        Lane(stage.stage, (*_spans(_shares(stage, chunks), of, drained, loss), *after))
        for stage, of in zip(stages, events, strict=True)
    ]


def _later(event: Event, seconds_: float) -> Event:
    return replace(event, begin=event.begin + seconds_, end=event.end + seconds_)


def _shares(stage: StageEstimate, chunks: int) -> dict[str, tuple[tuple[str, float], ...]]:
    """What a micro-batch's way forward, and back, through a stage consists of, in seconds."""
    exchange = ("handover", chunks * stage.handover_seconds)
    return {
        "forward": (("forward", stage.forward_seconds), ("tensor", stage.tensor_forward_seconds), exchange),
        "backward": (
            ("recompute", stage.recompute_seconds),
            ("backward", stage.backward_seconds),
            ("tensor", stage.tensor_backward_seconds),
            exchange,
        ),
    }


def _spans(
    shares: Mapping[str, Sequence[tuple[str, float]]], events: Sequence[Event], drained: float, loss: Sequence[Span]
) -> Iterator[Span]:
    """Passes, divided among computing and sending, and the waiting between them; `loss` stands where nothing runs."""
    yield from loss
    lost = {one.begin for one in loss}
    before = 0.0
    for event in events:
        if event.begin > before and before not in lost:
            yield Span("bubble", before, event.begin)
        parts = shares[event.work.kind]
        whole, begin = sum(part for _, part in parts) or 1.0, event.begin
        for kind, part in parts:
            end = begin + (event.end - event.begin) * part / whole
            if end > begin:
                label = f"{kind[0].upper()}{event.work.micro_batch + 1}" if kind == event.work.kind else ""
                yield Span(kind, begin, end, label)
            begin = end
        before = event.end
    if drained > before:
        yield Span("bubble", before, drained)


def axis_of(estimate: Estimate, lanes: Sequence[Lane]) -> Axis:
    """All of the step; where the first stage has many passes, its beginning and its end.

    Shown are the first stage's passes until after its first backward ones, and the end from the last stage's last
    `FEWEST` passes on.
    """
    end = max(span.end for lane in lanes for span in lane.spans)
    first, last = (_passes(lanes[place]) for place in (0, -1))
    backward = next(number for number, span in enumerate(first) if span.kind == "backward")
    shown = FEWEST if estimate.couples_batch else max(FEWEST, backward + 5)
    if len(first) <= 2 * shown + FEWEST:
        return Axis(end, None)
    return Axis(end, (first[shown].begin, last[-FEWEST].begin))


def _passes(lane: Lane) -> list[Span]:
    return sorted((s for s in lane.spans if s.kind in ("forward", "backward")), key=lambda span: span.begin)


def time_line(estimate: Estimate) -> Html:
    """The picture and its legend."""
    lanes = lanes_of(estimate)
    axis = axis_of(estimate, lanes)
    pitch = max(8.0, min(30.0, 400.0 / len(lanes)))
    height = pitch - min(4.0, 0.25 * pitch)
    every = math.ceil(13.0 / pitch)
    paths: dict[str, list[str]] = defaultdict(list)
    names: list[Html] = []
    labels: list[Html] = []
    for place, lane in enumerate(lanes):
        top = TOP + pitch * place
        if place % every == 0:
            label = f"stage {lane.stage}" if len(lanes) > 1 else "each rank"
            names.append(element("text", label, x=0.0, y=top + height / 2 + 4))
        for span in lane.spans:
            paths[span.kind] += _boxes(axis, span.begin, span.end, top, height)
            labels += _label(axis, span, top + height / 2 + 4) if height >= 13 else []
    below = TOP + pitch * len(lanes)
    drawn = [
        element("path", element("title", NAMES[kind]), d="".join(paths[kind]), class_=f"t-{kind}")
        for kind in NAMES
        if paths[kind]
    ]
    picture = described(
        "timeline",
        "Time line of one step",
        _spoken(estimate, axis),
        *names,
        *drawn,
        *labels[:MOST_LABELS],
        *_ticks(axis, below),
        viewBox=f"0 0 {WIDTH:g} {below + BOTTOM:g}",
        class_="plan",
    )
    return element("figure", picture, _legend(paths))


def _boxes(axis: Axis, begin: float, end: float, top: float, height: float) -> Iterator[str]:
    """A box, or what is left of it beside the part that is left out."""
    pieces = [(begin, end)]
    if axis.cut is not None:
        first, again = axis.cut
        pieces = [(begin, min(end, first)), (max(begin, again), end)]
    for left, right in pieces:
        if right > left:
            x, width = axis.at(left), axis.at(right) - axis.at(left)
            width -= min(SEAM, 0.2 * width)
            if width > 0.05:
                yield f"M{x:.2f} {top:.1f}h{width:.2f}v{height:.1f}h-{width:.2f}z"


def _label(axis: Axis, span: Span, y: float) -> Iterator[Html]:
    """A letter and a number, if all of the box is there and wide enough."""
    left, right = axis.at(span.begin), axis.at(span.end)
    hidden = axis.cut is not None and span.begin < axis.cut[1] and span.end > axis.cut[0]
    if span.label and not hidden and right - left > 7.0 * len(span.label) + 3:
        yield element("text", span.label, x=(left + right) / 2, y=y, class_="on")


def _ticks(axis: Axis, below: float) -> Iterator[Html]:
    """Times at the ends, and at the tear in the middle."""
    ends = [(0.0, "start"), (axis.end, "end")]
    if axis.cut is not None:
        first, again = axis.cut
        left, right = axis.at(first), axis.at(again)
        for x in (left, right):
            yield element("path", d=f"M{x:.1f} {TOP - 4:g}V{below + 2:g}", class_="tear")
        middle = (left + right) / 2
        turned = f"rotate(-90 {middle:.1f} {(TOP + below) / 2:.1f})"
        gone = f"{seconds(again - first)} left out" if below - TOP > 100 else "\u2026"
        yield element(
            "text",
            gone,
            x=middle,
            y=(TOP + below) / 2 + 4,
            text_anchor="middle",
            transform=turned if len(gone) > 1 else None,
        )
        ends += [(first, "end"), (again, "start")]
    for second, anchor in ends:
        yield element("text", seconds(second), x=axis.at(second), y=below + 16, text_anchor=anchor)


def _spoken(estimate: Estimate, axis: Axis) -> str:
    left_out = ""
    if axis.cut is not None:
        left_out = f"; what is alike from {seconds(axis.cut[0])} to {seconds(axis.cut[1])} is left out"
    return (
        f"{len(estimate.stages)} stages, {estimate.micro_batches} micro-batches, {seconds(axis.end)} in all{left_out}. "
        "The table of the step's time has the sums."
    )


def _legend(paths: Mapping[str, Sequence[str]]) -> Html:
    items = [
        element("li", element("span", class_=f"swatch t-{kind}", aria_hidden="true"), name)
        for kind, name in NAMES.items()
        if paths[kind]
    ]
    return element("ul", *items, class_="legend", aria_label="Legend")
