"""A document's text in a box, and the reasons with the documents that they dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.report.markup import Html, element
from data_pipeline.report.numbers import count, plural, share, size
from data_pipeline.report.tables import bar, number, table


def box(name: str, head: str, text: str, label: str, kind: str = "") -> Html:
    """`head` over the text, which scrolls, by keyboard too. name: of the element around both."""
    inside = (
        element("div", text, class_="text", dir="auto", tabindex="0", role="group", aria_label=label)
        if text.strip()
        else element("p", "no text", class_="text empty")
    )
    return element(name, element("span", head, class_="source"), inside, class_=f"excerpt {kind}".rstrip())


def reasons(dropped: Sequence[Mapping[str, Any]], stages: Sequence[Mapping[str, Any]]) -> Html:
    """A row for each reason, most documents first, that opens to excerpts.

    Shares are of all documents found: those read, and those that a reason names which belongs to no later stage.
    """
    if not dropped:
        return element("p", "No document was dropped.", class_="empty")
    later = {stage["stage"] for stage in stages[1:]}
    unread = sum(drop["documents"] for drop in dropped if drop["reason"].partition(":")[0] not in later)
    found = unread + (stages[0]["documents"] if stages else 0)
    ordered = sorted(dropped, key=lambda drop: (-drop["documents"], drop["reason"]))
    most = ordered[0]["documents"] or 1
    head = [("Reason", ""), ("", "wide"), ("Documents", "number"), ("Of found", "number"), ("Bytes", "number")]
    return table("Why documents were dropped", head, [_reason(drop, most, found) for drop in ordered], kind="reasons")


def _reason(drop: Mapping[str, Any], most: int, found: int) -> Html:
    stage, colon, rule = drop["reason"].partition(":")
    name = (element("span", stage + colon, class_="stage"), rule) if rule else (stage + colon,)
    row = element(
        "tr",
        element("th", *name, scope="row"),
        element("td", bar(drop["documents"] / most, "less"), class_="wide"),
        number(count(drop["documents"])),
        number(share(drop["documents"], found)),
        number(size(drop["bytes"])),
    )
    return element("tbody", row, element("tr", element("td", _examples(drop), colspan=5), class_="more"))


def _examples(drop: Mapping[str, Any]) -> Html:
    examples = drop["examples"]
    if not examples:
        return element("small", "no excerpt was kept")
    boxes = [
        box("li", element("bdi", example["source"]), example["excerpt"], f"excerpt {place}")
        for place, example in enumerate(examples, start=1)
    ]
    summary = element(
        "summary", plural(len(examples), "excerpt"), element("span", f" of: {drop['reason']}", class_="hidden")
    )
    return element("details", summary, element("ol", *boxes, class_="excerpts"))
