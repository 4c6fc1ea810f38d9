"""Contact sheets: pictures with their captions, and the reasons with the pairs that they dropped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.report.markup import Html, element
from data_pipeline.report.numbers import count, plural, share
from data_pipeline.report.tables import bar

_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")

STYLE = """
.sheet{list-style:none;padding:0;margin:10px 0 6px;display:grid;gap:10px;
grid-template-columns:repeat(auto-fill,minmax(148px,1fr))}
.sheet>li{border:1px solid var(--rule);border-radius:6px;background:var(--panel);min-width:0;overflow:hidden}
.frame{display:flex;height:124px;background:var(--track);align-items:center;justify-content:center}
.frame img{width:100%;height:100%;object-fit:contain}
.frame .nothing{color:var(--muted);font-size:12px;font-style:italic}
.frames{display:grid;grid-template-columns:1fr 1fr;gap:1px;background:var(--rule)}
.frames small{display:block;text-align:center;background:var(--panel)}
.wide-sheet{grid-template-columns:repeat(auto-fill,minmax(290px,1fr))}
.said{margin:0;padding:6px 9px 2px;font-size:13px;line-height:1.35;overflow-wrap:anywhere;unicode-bidi:plaintext;
max-height:6.9em;overflow:auto}
.sheet .source{border:0;padding:0 9px 6px;font-size:11px}
.reason{margin:18px 0 0;display:grid;grid-template-columns:minmax(0,1fr) 180px;gap:2px 16px;align-items:center}
.reason h3{margin:0}.reason .of{text-align:right;font-size:13px;color:var(--muted)}
"""


def sheet(examples: Sequence[Mapping[str, Any]], empty: str) -> Html:
    """Pictures with captions. Those that give way to another one (`kept`) stand beside it."""
    if not examples:
        return element("p", empty, class_="empty")
    beside = any(example.get("kept") for example in examples)
    cells = [_beside(example) if example.get("kept") else _cell(example) for example in examples]
    return element("ol", *cells, class_="sheet wide-sheet" if beside else "sheet")


def reasons(dropped: Sequence[Mapping[str, Any]], found: int) -> Html:
    """Each reason with its share of the pairs found and a sheet of pairs that it dropped, most pairs first."""
    if not dropped:
        return element("p", "No pair was dropped.", class_="empty")
    ordered = sorted(dropped, key=lambda drop: (-drop["pairs"], drop["reason"]))
    most = ordered[0]["pairs"] or 1
    return element("div", *(_reason(drop, most, found) for drop in ordered))


def _reason(drop: Mapping[str, Any], most: int, found: int) -> Html:
    stage, colon, rule = drop["reason"].partition(":")
    shown = len(drop["examples"])
    portion = f"{plural(drop['pairs'], 'pair')}, {share(drop['pairs'], found)} of those found"
    if shown < drop["pairs"]:
        portion += f"; {count(shown)} of them, chosen by hash"
    head = element(
        "div",
        element("h3", element("span", stage + colon, class_="stage"), rule),
        bar(drop["pairs"] / most, "less"),
        element("span", portion, class_="note"),
        class_="reason",
    )
    return element("section", head, sheet(drop["examples"], "No example was kept."), class_="dropped")


def _cell(example: Mapping[str, Any]) -> Html:
    return element("li", _frame(example["picture"], example["caption"]), *_words(example))


def _beside(example: Mapping[str, Any]) -> Html:
    kept = example["kept"]
    frames = element(
        "div",
        element("div", element("small", "kept"), _frame(kept["picture"], kept["caption"])),
        element("div", element("small", "dropped"), _frame(example["picture"], example["caption"])),
        class_="frames",
    )
    words = [_said("kept: ", kept["caption"]), element("span", element("bdi", kept["source"]), class_="source")]
    words += [
        _said("dropped: ", example["caption"]),
        element("span", element("bdi", example["source"]), class_="source"),
    ]
    return element("li", frames, *words)


def _words(example: Mapping[str, Any]) -> list[Html]:
    return [_said("", example["caption"]), element("span", element("bdi", example["source"]), class_="source")]


def _said(before: str, caption: str) -> Html:
    if not caption.strip():
        return element("p", before + "no caption", class_="said empty")
    return element("p", element("span", before, class_="stage") if before else None, caption, class_="said", dir="auto")


def _frame(picture: str, caption: str) -> Html:
    """picture: a JPEG in base64, and nothing but that."""
    if not picture or not _BASE64.fullmatch(picture):
        return element("div", element("span", "no picture", class_="nothing"), class_="frame")
    image = element("img", src=f"data:image/jpeg;base64,{picture}", alt=caption[:120], loading="lazy")
    return element("div", Html(image.removesuffix("</img>")), class_="frame")
