"""The pages: `render_mix` for all corpora together, `render_corpus` for one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.pairs.report import parts
from data_pipeline.pairs.report.parts import Corpus, corpus_link, ends
from data_pipeline.pairs.report.sheet import STYLE, reasons, sheet
from data_pipeline.report import sections
from data_pipeline.report.document import document, header
from data_pipeline.report.markup import Html, element, join
from data_pipeline.report.numbers import count, duration, plural, share, size
from data_pipeline.report.sections import section

_SHOWN_IN_MIX = 8
_FOOTER = "Made by trestle prepare."


def render_mix(data: Mapping[str, Any]) -> str:
    """The page of the whole mix, to lie at `report.html`; it links to `NAME/report.html`.

    data: what report.json holds. Text in it may be anything: it is shown, never obeyed.
    """
    corpora = data["corpora"]
    kept = [
        section(
            corpus["name"],
            sheet(corpus["kept"][:_SHOWN_IN_MIX], "No pair was kept."),
            element("p", element("a", "what was kept and dropped, and why", href=corpus_link(corpus["name"]))),
        )
        for corpus in corpora
    ]
    facts = element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value))
            for name, value in (
                ("Vocabulary", plural(data["vocab_size"], "token")),
                ("Tokenizer", data["tokenizer_sha256"][:16]),
            )
        ),
        class_="facts",
    )
    return document(
        f"{data['title']}: data report",
        header("Trestle data report", data["title"], facts, _tiles(corpora, data["seconds"])),
        section("The mix", parts.mix(corpora), lead="Pairs of a picture and its caption."),
        *kept,
        _duplicates(data["duplicates"]),
        sections.time(data["seconds"]),
        footer=_FOOTER,
        more_style=STYLE,
        pictures=True,
    )


def render_corpus(data: Mapping[str, Any], name: str) -> str:
    """The page of one corpus, to lie at `NAME/report.html`; it links to `../report.html`. Raises KeyError."""
    corpus = next((corpus for corpus in data["corpora"] if corpus["name"] == name), None)
    if corpus is None:
        raise KeyError(name)
    over = join("Trestle data report of ", element("a", data["title"], href="../report.html"))
    links = [
        element("strong", other["name"], aria_current="page")
        if other["name"] == name
        else element("a", other["name"], href=corpus_link(other["name"], "../"))
        for other in data["corpora"]
    ]
    siblings = element("nav", element("ul", *(element("li", link) for link in links)), aria_label="Corpora")
    found, kept, _ = ends(corpus)
    held_out = (corpus["validation"] or {}).get("samples", 0)
    lead = f"{plural(found, 'pair')} found in {plural(corpus['files'], 'file')}; {count(kept)} kept, of them "
    lead += f"{count(corpus['training']['samples'])} for training and {count(held_out)} held out."
    return document(
        f"{name} in {data['title']}: data report",
        header(over, name, siblings, _tiles([corpus], None)),
        section("Funnel", parts.funnel(corpus), lead=lead),
        section("Kept", sheet(corpus["kept"], "No pair was kept."), lead="Some of the pairs, chosen by hash."),
        section(
            "Why pairs were dropped",
            reasons(corpus["dropped"], found),
            lead="Most pairs first, with some of those that each reason dropped." if corpus["dropped"] else None,
        ),
        section("What the pairs are like", parts.histograms(corpus["histograms"])),
        footer=_FOOTER,
        more_style=STYLE,
        pictures=True,
    )


def _duplicates(found: Mapping[str, Any]) -> Html:
    lead = (
        f"Pictures whose 64-bit perceptual hashes differ in {found['distance']} bits at most, and whose colours differ "
        "little, make a group; of each group the first stays."
    )
    copies = parts.group_sizes("Equal files", found["copy_sizes"])
    near = parts.group_sizes("Pictures that look alike", found["cluster_sizes"])
    return section("Copies and near copies", element("div", copies, near, class_="grid"), lead=lead)


def _tiles(corpora: Sequence[Corpus], seconds: Mapping[str, float] | None) -> list[tuple[str, str, str]]:
    found, kept, size_kept = (sum(ends(corpus)[at] for corpus in corpora) for at in range(3))
    held_out = sum((corpus["validation"] or {}).get("samples", 0) for corpus in corpora)
    training = sum(corpus["training"]["samples"] for corpus in corpora)
    words = sum(corpus["training"]["caption_bytes"] for corpus in corpora)
    tiles = [
        ("Pairs kept", count(kept), f"{share(kept, found)} of {count(found)} found" if found else "none found"),
        ("Pictures kept", size(size_kept), f"{size(size_kept / kept)} a picture" if kept else "none"),
        ("Training pairs", count(training), f"{size(words)} of captions"),
        ("Held out", count(held_out), "pairs, by hash of the picture"),
    ]
    if seconds is not None:
        tiles.append(("Time", duration(sum(seconds.values())), f"in {plural(len(seconds), 'phase')}"))
    return tiles
