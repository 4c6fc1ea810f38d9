"""Histograms: document lengths, languages, scores, cluster sizes and whatever else a stage observed."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping

from data_pipeline.report.charts import Column, histogram
from data_pipeline.report.markup import Html, element
from data_pipeline.report.numbers import count, plural, round_size, share, size
from data_pipeline.report.tables import bars, heads, row
from data_pipeline.report.tables import number as cell

#: Rows of a histogram of names; the rest is added up in one.
MOST_ROWS = 16
#: Not float(): "nan" is a language, Min Nan.
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
_QUARTER_OCTAVE = 2**0.25
_BINS_OF_SCORE = 20

Bins = Mapping[str, int]


def all_histograms(histograms: Mapping[str, Bins]) -> Html:
    """A card for each; those with a scale of their own first."""
    if not histograms:
        return element("p", "Nothing was observed.", class_="empty")
    first = [name for name in ("length", "score", "language") if name in histograms]
    names = first + sorted(name for name in histograms if name not in first)
    cards = [_card(f"histogram-{place}", name, histograms[name]) for place, name in enumerate(names)]
    return element("div", *cards, class_="grid")


def cluster_sizes(key: str, sizes: Bins) -> Html:
    """Clusters of near-duplicates by their number of documents, both logarithmic."""
    if not any(sizes.values()):
        return element("p", "No cluster of near-duplicates.", class_="empty")
    binned: Counter[int] = Counter()
    for written, clusters in sizes.items():
        binned[int(math.log2(max(2, int(written))))] += clusters
    last = max(binned)
    width = 1 / last
    columns = []
    for power in range(1, last + 1):
        label = "2 or 3 documents" if power == 1 else f"{count(2**power)} to {count(2 ** (power + 1) - 1)} documents"
        columns.append(Column((power - 1) * width, power * width, binned[power], label))
    every = math.ceil(last / 10)
    ticks = [((power - 1) * width, count(2**power)) for power in range(1, last + 1, every)]
    clusters, documents = sum(sizes.values()), sum(int(written) * number for written, number in sizes.items())
    description = (
        f"{plural(clusters, 'cluster')} of {plural(documents, 'document')}; the largest has {max(map(int, sizes))}."
    )
    chart = histogram(
        key,
        "Sizes of the clusters",
        description,
        columns,
        ticks,
        ("documents in a cluster", "clusters"),
        logarithmic=True,
    )
    return element("figure", chart, _numbers(columns, "Documents in a cluster", "Clusters"))


def scores(key: str, bins: Bins) -> Html:
    """Documents by the quality filter's score, 0 to 1."""
    columns = [Column(*_score_edges(edge), bins[edge], _score_label(edge)) for edge in sorted(bins, key=float)]
    ticks = [(tenth / 10, f"{tenth / 10:.1f}") for tenth in range(0, 11, 2)]
    description = f"{plural(sum(bins.values()), 'document')} by score."
    axis = ("score: 0 like the raw corpus, 1 like the curated ones", "documents")
    chart = histogram(key, "Scores of the quality filter", description, columns, ticks, axis)
    return element("figure", chart, _numbers(columns, "Score", "Documents"))


def lengths(key: str, bins: Bins) -> Html:
    """Documents by their bytes, on a logarithmic axis of quarter octaves."""
    edges = sorted((float(edge), documents) for edge, documents in bins.items() if float(edge) > 0)
    if not edges:
        return element("p", "No document has a length.", class_="empty")
    low, high = math.log10(edges[0][0]), math.log10(edges[-1][0] * _QUARTER_OCTAVE)

    def place(value: float) -> float:
        return (math.log10(value) - low) / (high - low)

    columns = [
        Column(place(edge), place(edge * _QUARTER_OCTAVE), documents, f"{size(edge)} to {size(edge * _QUARTER_OCTAVE)}")
        for edge, documents in edges
    ]
    median = _median(edges)
    return element(
        "figure",
        histogram(
            key,
            "Lengths of the documents",
            f"{plural(sum(n for _, n in edges), 'document')}; half of them are shorter than about {size(median)}.",
            columns,
            [(place(value), round_size(value)) for value in _round_sizes(low, high)],
            ("bytes of text in a document, logarithmic", "documents"),
            mark=(place(median), f"median {size(median)}"),
        ),
        _numbers(columns, "Length", "Documents"),
    )


def _card(key: str, name: str, bins: Bins) -> Html:
    special = {
        "length": ("Document length", lengths),
        "score": ("Score of the quality filter", scores),
    }
    if not any(bins.values()):
        title, drawn = special.get(name, (name, None))[0], element("p", "No document.", class_="empty")
    elif name in special:
        title, draw = special[name]
        drawn = draw(key, bins)
    else:
        title, drawn = name[:1].upper() + name[1:].replace("_", " "), _names(name, bins)
    return element("div", element("h3", title), drawn, class_="card")


def _names(name: str, bins: Bins) -> Html:
    """Bars for bins that have no scale: by number where all are numbers, else most documents first."""
    numeric = all(_NUMBER.fullmatch(label) for label in bins)
    ordered = sorted(bins.items(), key=lambda item: (float(item[0]), item[0]) if numeric else (-item[1], item[0]))
    shown, rest = ordered[:MOST_ROWS], ordered[MOST_ROWS:]
    if rest:
        shown.append((f"{plural(len(rest), 'other')}", sum(documents for _, documents in rest)))
    whole = sum(bins.values())
    items = [(label or "not known", n, count(n), share(n, whole)) for label, n in shown]
    return bars(f"Documents by {name}", (name.capitalize().replace("_", " "), "Documents", "Share"), items, "documents")


def _numbers(columns: list[Column], what: str, counted: str) -> Html:
    """The same as the picture, for those who cannot see it or want the digits."""
    rows = [row(column.label, cell(count(column.documents))) for column in columns if column.documents]
    head = heads([(what, ""), (counted, "number")])
    return element(
        "details",
        element("summary", "Numbers"),
        element("table", head, element("tbody", *rows), class_="compact"),
    )


def _score_edges(edge: str) -> tuple[float, float]:
    return float(edge), min(1.0, float(edge) + 1 / _BINS_OF_SCORE)


def _score_label(edge: str) -> str:
    low, high = _score_edges(edge)
    return f"{low:.2f} to {high:.2f}"


def _median(edges: list[tuple[float, int]]) -> float:
    """Within its bin as if the logarithms were spread evenly."""
    half = sum(documents for _, documents in edges) / 2
    passed = 0
    for edge, documents in edges:
        if documents and passed + documents >= half:
            return float(edge * _QUARTER_OCTAVE ** ((half - passed) / documents))
        passed += documents
    raise AssertionError("the last bin reaches all documents")


def _round_sizes(low: float, high: float) -> list[float]:
    """Powers of ten within the axis, and where those are few 2 and 5 times them."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        sizes = [factor * 10.0**power for power in powers for factor in factors]
        inside = [value for value in sizes if low <= math.log10(value) <= high]
        if len(inside) >= 4:
            break
    return inside
