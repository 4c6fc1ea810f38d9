"""The mix's page: tokens and epochs of each corpus, a funnel of each, the quality filter, the time that all took."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from data_pipeline.report import charts, histograms
from data_pipeline.report.funnel import compact_funnel, summary
from data_pipeline.report.markup import Html, element
from data_pipeline.report.numbers import count, duration, magnitude, plural, ratio, share
from data_pipeline.report.tables import bar, bars, number, row, table

#: Muennighoff et al. 2023, "Scaling data-constrained language models": up to four epochs of a text are worth nearly as
#: much as new text, beyond that repetition is worth less and less.
MOST_EPOCHS = 4.0

Corpus = Mapping[str, Any]


def section(title: str, *content: Html | None, lead: str | None = None) -> Html:
    """A heading, a sentence on what is to be seen, and the thing."""
    return element("section", element("h2", title), element("p", lead, class_="lead") if lead else None, *content)


def corpus_link(name: str, above: str = "") -> str:
    """Path of a corpus's page, from the mix's page or (above: "../") from another corpus's."""
    return f"{above}{quote(name, safe='', errors='replace')}/report.html"


def repeated(corpora: Sequence[Corpus]) -> list[Corpus]:
    """Those that the training would repeat more often than `MOST_EPOCHS`."""
    return [corpus for corpus in corpora if (corpus["epochs"] or 0.0) > MOST_EPOCHS]


def warning(corpora: Sequence[Corpus], training_tokens: int) -> Html | None:
    """A box that names the corpora with too many epochs, if any."""
    found = repeated(corpora)
    if not found:
        return None
    named = ", ".join(f"{corpus['name']} ({ratio(corpus['epochs'])} epochs)" for corpus in found)
    text = (
        f"A training of {magnitude(training_tokens)} tokens repeats {named}: more than {MOST_EPOCHS:g} epochs. "
        "Up to there repeated text is worth nearly as much as new text, beyond that less and less "
        "(Muennighoff et al. 2023). Give it a lower weight, add text, or train on fewer tokens."
    )
    return element("div", element("p", element("strong", "Many epochs. "), text), class_="warning", role="note")


def mix(corpora: Sequence[Corpus], training_tokens: int) -> Html:
    """The picture and the table of the mix."""
    title = "The mix"
    if not corpora:
        return section(title, element("p", "There is no corpus.", class_="empty"))
    there = [corpus["training"]["tokens"] for corpus in corpora]
    length = f"{magnitude(training_tokens)} tokens"
    if not any(there):
        return section(title, element("p", "No token was made.", class_="empty"), _mix_table(corpora, training_tokens))
    picture = charts.mix(
        "mix",
        [corpus["name"] for corpus in corpora],
        [tokens / sum(there) for tokens in there],
        [corpus["share"] for corpus in corpora],
        length,
    )
    lead = (
        f"Above, the tokens that the corpora have; below, what a training of {length} draws by their weights. "
        "A band that widens is text seen more often than the average. An epoch is one pass over a corpus."
    )
    return section(title, element("figure", picture), _mix_table(corpora, training_tokens), lead=lead)


def _mix_table(corpora: Sequence[Corpus], training_tokens: int) -> Html:
    scale = 1.1 * max([MOST_EPOCHS, *(c["epochs"] for c in corpora if c["epochs"] and math.isfinite(c["epochs"]))])
    head = [
        ("Corpus", ""),
        ("Documents", "number"),
        ("Tokens", "number"),
        ("Samples", "number"),
        ("Bytes a token", "number"),
        ("Weight", "number"),
        ("Share", "number"),
        ("Epochs", "number"),
        (f"line at {MOST_EPOCHS:g}", "epochs"),
    ]
    rows = [_mix_row(place, corpus, scale) for place, corpus in enumerate(corpora)]
    sums = {key: sum(c["training"][key] for c in corpora) for key in ("documents", "bytes", "tokens", "samples")}
    foot = element(
        "tr",
        element("th", "All", scope="row"),
        number(count(sums["documents"])),
        number(count(sums["tokens"])),
        number(count(sums["samples"])),
        number(bytes_a_token(sums)),
        number(f"{sum(c['weight'] for c in corpora):g}"),
        number(share(sum(c["share"] for c in corpora), 1)),
        element("td", colspan=2),
    )
    caption = f"Tokens and weights of the corpora, and epochs in {magnitude(training_tokens)} tokens"
    return table(caption, head, rows, foot, kind="mix")


def _mix_row(place: int, corpus: Corpus, scale: float) -> Html:
    made, epochs = corpus["training"], corpus["epochs"]
    over = (epochs or 0.0) > MOST_EPOCHS
    return row(
        corpus["name"],
        number(count(made["documents"])),
        number(count(made["tokens"])),
        number(count(made["samples"])),
        number(bytes_a_token(made)),
        number(f"{corpus['weight']:g}"),
        number(share(corpus["share"], 1)),
        number(("⚠ " if over else "") + ratio(epochs), kind="number over" if over else "number"),
        element(
            "td", bar((epochs or 0.0) / scale, "warm" if over else "documents", MOST_EPOCHS / scale), class_="epochs"
        ),
        swatch=place % charts.COLOURS,
        link=corpus_link(corpus["name"]),
    )


def bytes_a_token(made: Mapping[str, int]) -> str:
    """Bytes of text for each token; a dash where there is none."""
    return ratio(made["bytes"] / made["tokens"] if made["tokens"] else None)


def corpora_cards(corpora: Sequence[Corpus]) -> Html:
    """A card for each corpus with its funnel, and the way to its page."""
    if not corpora:
        return section("The corpora", element("p", "There is no corpus.", class_="empty"))
    cards = [
        element(
            "div",
            element("h3", element("a", corpus["name"], href=corpus_link(corpus["name"]))),
            element("p", f"{plural(corpus['files'], 'file')}. {summary(corpus['funnel'])}", class_="lead"),
            compact_funnel(corpus["name"], corpus["funnel"]),
            class_="card",
        )
        for corpus in corpora
    ]
    lead = "Documents that leave each stage. A corpus's own page has bytes, reasons and excerpts."
    return section("The corpora", element("div", *cards, class_="grid"), lead=lead)


def classifier(found: Mapping[str, Any] | None, corpora: Sequence[Corpus]) -> Html:
    """The ROC curve, and the scores of all documents that were judged."""
    title = "Quality filter"
    if found is None:
        return section(title, element("p", "No corpus has the stage quality.", class_="empty"))
    bins: Counter[str] = Counter()
    for corpus in corpora:
        bins.update(corpus["histograms"].get("score", {}))
    lead = (
        f"Trained on {plural(found['curated_documents'], 'curated document')} against "
        f"{plural(found['raw_documents'], 'raw one')}; it keeps {share(found['kept_share'], 1)} of the raw ones."
    )
    curve = element("p", "There is no curve.", class_="empty")
    if found["roc"]:
        curve = element("figure", charts.roc("roc", found["roc"], found["auc"]))
    left = element("div", element("h3", "ROC curve"), curve)
    scored = histograms.scores("scores", bins) if any(bins.values()) else None
    empty = element("p", "No document was scored.", class_="empty") if scored is None else None
    right = element("div", element("h3", "Scores of all documents judged"), scored, empty)
    return section(title, element("div", left, right, class_="two"), lead=lead)


def duplicate_clusters(sizes: Mapping[str, int]) -> tuple[str, Html]:
    """A sentence on the clusters, and their picture."""
    clusters = sum(sizes.values())
    extra = sum((int(written) - 1) * number for written, number in sizes.items())
    return f"{plural(clusters, 'cluster')}; {plural(extra, 'document')} dropped.", histograms.cluster_sizes(
        "clusters", sizes
    )


def time(seconds: Mapping[str, float]) -> Html:
    """A bar for each phase, in the order in which they ran."""
    if not seconds:
        return section("Time", element("p", "No phase was timed.", class_="empty"))
    whole = sum(seconds.values())
    items = [(name, taken, duration(taken), share(taken, whole)) for name, taken in seconds.items()]
    return section(
        "Time",
        bars("Time of each phase", ("Phase", "Time", "Share"), items, "bytes"),
        lead=f"{duration(whole)} in all.",
    )
