"""The table of the mix, the funnel of a corpus, and what its pictures and captions are like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from data_pipeline.report import charts
from data_pipeline.report.charts import Column, histogram
from data_pipeline.report.markup import Html, element
from data_pipeline.report.numbers import count, loss, plural, share, short, size
from data_pipeline.report.tables import bar, bars, number, row, table

Corpus = Mapping[str, Any]
_QUARTER_OCTAVE = 2**0.25
#: Name of a histogram with a logarithmic scale -> title, what its axis counts.
_SCALES = {
    "shorter side": ("Shorter side of the pictures", "pixels of the shorter side, logarithmic"),
    "aspect": ("Longer over shorter side", "longer over shorter side, logarithmic"),
    "caption length": ("Length of the captions", "characters of a caption, logarithmic"),
}
_NAMES = {"kind": "Kinds of pictures", "language": "Languages of the captions"}


def corpus_link(name: str, above: str = "") -> str:
    """Path of a corpus's page, from the mix's page or (above: "../") from another corpus's."""
    return f"{above}{quote(name, safe='', errors='replace')}/report.html"


def ends(corpus: Corpus) -> tuple[int, int, int]:
    """Pairs found, pairs kept, and bytes of the pictures kept."""
    stages = corpus["funnel"]
    return (stages[0]["pairs"], stages[-1]["pairs"], stages[-1]["bytes"]) if stages else (0, 0, 0)


def mix(corpora: Sequence[Corpus]) -> Html:
    """A row for each corpus: pairs, bytes, weight."""
    head = [
        ("Corpus", ""),
        ("Found", "number"),
        ("Kept", "number"),
        ("Training", "number"),
        ("Held out", "number"),
        ("Pictures", "number"),
        ("Weight", "number"),
        ("Share", "number"),
    ]
    rows = []
    for place, corpus in enumerate(corpora):
        found, kept, size_kept = ends(corpus)
        held_out = (corpus["validation"] or {}).get("samples", 0)
        rows.append(
            row(
                corpus["name"],
                number(count(found)),
                number(count(kept), share(kept, found)),
                number(count(corpus["training"]["samples"])),
                number(count(held_out)),
                number(size(size_kept)),
                number(f"{corpus['weight']:g}"),
                number(share(corpus["share"], 1)),
                swatch=place % charts.COLOURS,
                link=corpus_link(corpus["name"]),
            )
        )
    return table("Pairs and weights of the corpora", head, rows, kind="mix")


def funnel(corpus: Corpus) -> Html:
    """A row for each stage: the pairs that leave it and those that it lost."""
    stages = corpus["funnel"]
    if not stages:
        return element("p", "No pair was found.", class_="empty")
    head = [("Stage", ""), ("", "wide"), ("Pairs", "number"), ("Lost", "number"), ("Pictures", "number")]
    first = stages[0]["pairs"]
    rows = []
    for before, here in zip([stages[0], *stages], stages, strict=False):
        lost = before["pairs"] - here["pairs"]
        rows.append(
            row(
                here["stage"],
                element("td", bar(here["pairs"] / first if first else 0), class_="wide"),
                number(count(here["pairs"]), share(here["pairs"], first)),
                number(*loss(lost, before["pairs"], count(abs(lost))), kind="number lost" if lost else "number none"),
                number(size(here["bytes"]) if here["bytes"] else "–"),
            )
        )
    return table("Pairs that leave each stage", head, rows, kind="bars")


def histograms(found: Mapping[str, Mapping[str, int]]) -> Html:
    """A card for each."""
    cards = []
    for place, (name, bins) in enumerate(found.items()):
        if name in _SCALES:
            title, axis = _SCALES[name]
            drawn = element("figure", _logarithmic(f"histogram-{place}", title, axis, bins))
        else:
            title = _NAMES.get(name, name)
            whole = sum(bins.values())
            ordered = sorted(bins.items(), key=lambda item: (-item[1], item[0]))
            items = [(label, n, count(n), share(n, whole)) for label, n in ordered]
            drawn = bars(title, (name.capitalize(), "Pairs", "Share"), items, "documents")
        cards.append(element("div", element("h3", title), drawn, class_="card"))
    return element("div", *cards, class_="grid") if cards else element("p", "Nothing was observed.", class_="empty")


def group_sizes(title: str, sizes: Mapping[str, int]) -> Html:
    """Groups of pictures by their size."""
    if not sizes:
        return element("p", f"{title}: none.", class_="empty")
    items = [(f"{written} pictures", groups, count(groups), "") for written, groups in sizes.items()]
    return element("div", element("h3", title), bars(title, ("Size", "Groups", ""), items[:12], "bytes"), class_="card")


def _logarithmic(key: str, title: str, axis: str, bins: Mapping[str, int]) -> Html:
    edges = sorted((float(edge), pairs) for edge, pairs in bins.items() if float(edge) > 0)
    low, high = math.log2(edges[0][0]), math.log2(edges[-1][0] * _QUARTER_OCTAVE)

    def place(value: float) -> float:
        return (math.log2(value) - low) / (high - low)

    columns = [
        Column(place(edge), place(edge * _QUARTER_OCTAVE), pairs, f"{edge:.3g} to {edge * _QUARTER_OCTAVE:.3g}")
        for edge, pairs in edges
    ]
    every = max(1, math.ceil((high - low) / 6))
    powers = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1, every)
    ticks = [(place(2.0**power), short(2.0**power)) for power in powers]
    described = f"{plural(sum(pairs for _, pairs in edges), 'pair')}."
    return histogram(key, title, described, columns, ticks, (axis, "pairs"))
