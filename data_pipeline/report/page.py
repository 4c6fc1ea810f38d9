"""The pages: `render_mix` for all corpora together, `render_corpus` for one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.report import sections
from data_pipeline.report.document import document, header
from data_pipeline.report.duplicates import pairs
from data_pipeline.report.excerpts import reasons
from data_pipeline.report.funnel import funnel, summary
from data_pipeline.report.histograms import all_histograms
from data_pipeline.report.markup import Html, element, join
from data_pipeline.report.numbers import count, duration, magnitude, plural, ratio, share, size
from data_pipeline.report.sections import Corpus, section

_FOOTER = "Made by trestle prepare."
_OPENS = "Most documents first. Each reason opens to documents that it dropped, chosen by hash."


def render_mix(data: Mapping[str, Any]) -> str:
    """The page of the whole mix, to lie at `report.html`; it links to `NAME/report.html`.

    data: what report.json holds. Text in it may be anything: it is shown, never obeyed.
    """
    corpora = data["corpora"]
    return document(
        f"{data['title']}: data report",
        header("Trestle data report", data["title"], _facts(data), _mix_tiles(data)),
        sections.warning(corpora, data["training_tokens"]),
        sections.mix(corpora, data["training_tokens"]),
        sections.corpora_cards(corpora),
        _duplicates(data["duplicates"]),
        sections.classifier(data["classifier"], corpora),
        sections.time(data["seconds"]),
        footer=_FOOTER,
    )


def render_corpus(data: Mapping[str, Any], name: str) -> str:
    """The page of one corpus, to lie at `NAME/report.html`; it links to `../report.html`. Raises KeyError."""
    corpus = next((corpus for corpus in data["corpora"] if corpus["name"] == name), None)
    if corpus is None:
        raise KeyError(name)
    stages = corpus["funnel"]
    over = join("Trestle data report of ", element("a", data["title"], href="../report.html"))
    return document(
        f"{name} in {data['title']}: data report",
        header(over, name, _siblings(data["corpora"], name), _corpus_tiles(corpus, data["training_tokens"])),
        sections.warning([corpus], data["training_tokens"]),
        section("Funnel", funnel(stages), _split(corpus) if stages else None, lead=summary(stages) if stages else None),
        section(
            "Why documents were dropped", reasons(corpus["dropped"], stages), lead=_OPENS if corpus["dropped"] else None
        ),
        section("What the documents are like", all_histograms(corpus["histograms"])),
        _duplicates_of(data["duplicates"], name),
        footer=_FOOTER,
    )


def _facts(data: Mapping[str, Any]) -> Html:
    facts = [
        ("Vocabulary", f"{plural(data['vocab_size'], 'token')}"),
        ("Sequence", f"{plural(data['sequence_length'], 'token')}"),
        ("Training", f"{magnitude(data['training_tokens'])} tokens"),
        ("Tokenizer", data["tokenizer_sha256"][:16]),
    ]
    return element("dl", *(element("div", element("dt", k), element("dd", v)) for k, v in facts), class_="facts")


def _siblings(corpora: Sequence[Corpus], name: str) -> Html:
    links = [
        element("strong", other["name"], aria_current="page")
        if other["name"] == name
        else element("a", other["name"], href=sections.corpus_link(other["name"], "../"))
        for other in corpora
    ]
    items = [element("li", link) for link in links]
    return element("nav", element("ul", *items), aria_label="Corpora")


def _mix_tiles(data: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    corpora = data["corpora"]
    tiles = _text_tiles(corpora)
    held_out = sum((corpus["validation"] or {}).get("tokens", 0) for corpus in corpora)
    documents = sum(corpus["held_out"]["documents"] for corpus in corpora)
    tiles.append(("Held out", f"{magnitude(held_out)}", f"tokens of {plural(documents, 'document')}"))
    most = max(corpora, default=None, key=lambda corpus: corpus["epochs"] or 0.0)
    tiles.append(("Most epochs", ratio(most and most["epochs"]), f"of {most['name']}" if most else "no corpus"))
    seconds = data["seconds"]
    tiles.append(("Time", duration(sum(seconds.values())), f"in {plural(len(seconds), 'phase')}"))
    return tiles


def _corpus_tiles(corpus: Corpus, training_tokens: int) -> list[tuple[str, str, str]]:
    tiles = _text_tiles([corpus])
    epochs = f"of a training of {magnitude(training_tokens)} tokens, at a share of {share(corpus['share'], 1)}"
    tiles.append(("Epochs", ratio(corpus["epochs"]), epochs))
    return tiles


def _text_tiles(corpora: Sequence[Corpus]) -> list[tuple[str, str, str]]:
    ends = [(corpus["funnel"][0], corpus["funnel"][-1]) for corpus in corpora if corpus["funnel"]]
    read, kept, size_read, size_kept = (
        sum(pair[side][what] for pair in ends) for what in ("documents", "bytes") for side in (0, 1)
    )
    made = {key: sum(corpus["training"][key] for corpus in corpora) for key in ("bytes", "tokens", "samples")}
    density = f", {sections.bytes_a_token(made)} bytes a token" if made["tokens"] else ""
    return [
        ("Documents kept", count(kept), f"{share(kept, read)} of {count(read)} read" if read else "none read"),
        (
            "Text kept",
            size(size_kept),
            f"{share(size_kept, size_read)} of {size(size_read)} read" if read else "none read",
        ),
        ("Training tokens", magnitude(made["tokens"]), plural(made["samples"], "sample") + density),
    ]


def _split(corpus: Corpus) -> Html:
    """Where the documents that left the last stage went."""
    made, held_out, validation = corpus["training"], corpus["held_out"], corpus["validation"]
    text = f"Of those left, {plural(made['documents'], 'document')} ({size(made['bytes'])}) went into training"
    if validation:
        text += f" and {plural(held_out['documents'], 'document')} ({magnitude(validation['tokens'])} tokens, "
        text += f"{plural(validation['samples'], 'sample')}) were held out for validation"
    else:
        text += "; none was held out for validation"
    overlap = held_out["dropped_for_overlap"]
    if overlap:
        text += (
            f"; {plural(overlap, 'more held-out document')} overlapped with the training text or were too short to tell"
        )
    return element("p", text + ".", class_="note")


def _duplicates(found: Mapping[str, Any] | None) -> Html:
    title = "Near-duplicates"
    if found is None:
        return section(title, element("p", "No corpus has the stage fuzzy_deduplicate.", class_="empty"))
    sentence, picture = sections.duplicate_clusters(found["cluster_sizes"])
    lead = f"Documents at a Jaccard similarity of {found['threshold']:g} or more make a cluster; its first one stays. "
    clusters = element("div", element("h3", "Sizes of the clusters"), picture, class_="card narrow")
    return section(title, clusters, pairs(found["pairs"]), lead=lead + sentence)


def _duplicates_of(found: Mapping[str, Any] | None, name: str) -> Html | None:
    """The pairs in which the corpus has a part."""
    if found is None:
        return None
    own = [pair for pair in found["pairs"] if name in (pair["kept"]["corpus"], pair["dropped"]["corpus"])]
    return section("Near-duplicates", pairs(own))
