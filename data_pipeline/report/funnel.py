"""Documents and bytes through the stages."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.report.markup import Html, element
from data_pipeline.report.numbers import count, loss, plural, share, size
from data_pipeline.report.tables import bar, number, row, table

#: One row of the funnel tapers from what came in to what leaves, and is straight below that. In units of the row.
_TAPER = 55
_HEIGHT = 100
_HALVES = element(
    "div",
    element("span", "documents", class_="d"),
    element("span", "bytes", class_="b"),
    class_="halves",
    aria_hidden="true",
)


def funnel(stages: Sequence[Mapping[str, Any]]) -> Html:
    """A row for each stage: what left it, as a share of all that was read, and what it lost of what came in."""
    if not stages:
        return element("p", "No document was read.", class_="empty")
    head = [
        ("Stage", ""),
        ("Documents", "number"),
        ("Lost", "number"),
        (_HALVES, "silhouette"),
        ("Bytes", "number"),
        ("Lost", "number"),
    ]
    rows = [_row(stages, at) for at in range(len(stages))]
    return table("What leaves each stage", head, rows, kind="funnel")


def compact_funnel(name: str, stages: Sequence[Mapping[str, Any]]) -> Html:
    """A bar for each stage: the documents that leave it, as a share of those read."""
    if not stages:
        return element("p", "No document was read.", class_="empty")
    read = stages[0]["documents"]
    rows = [
        row(
            stage["stage"],
            element("td", bar(stage["documents"] / read if read else 0), class_="wide"),
            number(count(stage["documents"])),
            number(share(stage["documents"], read)),
        )
        for stage in stages
    ]
    head = [("Stage", ""), ("", "wide"), ("Documents", "number"), ("Of read", "number")]
    return table(f"{name}: documents that leave each stage", head, rows, kind="bars compact")


def summary(stages: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: how much is left, and where most was lost."""
    if not stages:
        return "Nothing was read."
    first, last = stages[0], stages[-1]
    kept = f"{plural(last['documents'], 'document')} of {count(first['documents'])} left"
    kept += f" ({share(last['documents'], first['documents'])})"
    pairs = itertools.pairwise(stages)
    lost = [(before["documents"] - after["documents"], after["stage"]) for before, after in pairs]
    most, where = max(lost, default=(0, ""), key=lambda item: item[0])
    return f"{kept}, most lost to {where} ({count(most)})." if most > 0 else f"{kept}; no stage dropped any."


def _row(stages: Sequence[Mapping[str, Any]], at: int) -> Html:
    first, here, before = stages[0], stages[at], stages[max(0, at - 1)]
    documents, their_bytes = here["documents"], here["bytes"]
    fewer, smaller = before["documents"] - documents, before["bytes"] - their_bytes
    return row(
        here["stage"],
        number(count(documents), share(documents, first["documents"])),
        _lost(fewer, before["documents"], count(abs(fewer))),
        element("td", _silhouette(first, before, here), class_="silhouette"),
        number(size(their_bytes), share(their_bytes, first["bytes"])),
        _lost(smaller, before["bytes"], size(abs(smaller))),
    )


def _lost(part: int, whole: int, written: str) -> Html:
    return number(*loss(part, whole, written), kind="number lost" if part > 0 else "number none")


def _silhouette(first: Mapping[str, Any], before: Mapping[str, Any], here: Mapping[str, Any]) -> Html:
    """A slice of the funnel: documents to the left of the middle, bytes to the right."""
    halves = []
    for what, sign in (("documents", -1), ("bytes", 1)):
        top, bottom = (_width(stage[what], first[what]) * sign for stage in (before, here))
        lost = f"M50 0 H{50 + top:.2f} V{_HEIGHT} H50 Z" if abs(top) > abs(bottom) else ""
        kept = f"M50 0 H{50 + top:.2f} L{50 + bottom:.2f} {_TAPER} V{_HEIGHT} H50 Z"
        halves += [
            element("path", d=lost, class_=f"{what} was") if lost else None,
            element("path", d=kept, class_=what),
        ]
    return element(
        "svg",
        *halves,
        element("path", d=f"M50 0 V{_HEIGHT}", class_="axis"),
        viewBox=f"0 0 100 {_HEIGHT}",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


def _width(value: float, whole: float) -> float:
    """Half the funnel's width at most. A stage that gains (documents cut in two) must not leave the picture."""
    return 48 * min(value / whole, 1.04) if whole else 0.0
