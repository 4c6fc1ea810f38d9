"""The layouts of a search as a table of the page: each with what it loses by, and what to paste."""

from __future__ import annotations

from data_pipeline.report.markup import Html, element, join
from data_pipeline.report.tables import heads, number
from launcher.plan.search import Proposal, Search
from launcher.plan.show import search_heads, search_row
from launcher.tables import cell


def layouts(found: Search) -> Html:
    """A body for each proposal: its figures, and under them why it loses and its overrides."""
    bodies = [_body(place, one) for place, one in enumerate(found.proposals, 1)]
    head = [
        (name, "number" if place > 0 else "") for place, name in enumerate(search_heads(found.proposals[0].estimate))
    ]
    whole = element("table", element("caption", "The fastest layouts"), heads(head), join(*bodies), class_="layouts")
    return element("div", whole, class_="scroll", role="region", aria_label="The fastest layouts", tabindex="0")


def _body(place: int, one: Proposal) -> Html:
    first, *others = search_row(place, one.estimate)
    figures = element(
        "tr", element("th", cell(first), scope="row"), *(number(cell(value)) for value in others), class_="one"
    )
    why = f"loses by {one.loses_by}. " if one.loses_by else ""
    # Each override stays in one piece where the line breaks.
    pieces = [element("span", f"--{piece.strip()}") for piece in one.overrides.split("--") if piece.strip()]
    words = element("code", *(piece for pair in zip(pieces, [" "] * len(pieces), strict=True) for piece in pair))
    if not pieces:
        words = element("code", "(the recipe as it is)")
    return element(
        "tbody", figures, element("tr", element("td"), element("td", why, words, colspan=len(others)), class_="why")
    )
