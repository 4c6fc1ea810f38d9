"""A page in one file: nothing runs in it, and nothing is loaded."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from data_pipeline.report.markup import Html, element
from data_pipeline.report.style import SHEET


def document(
    title: str, top: Html, *content: Html | None, footer: str, more_style: str = "", pictures: bool = False
) -> str:
    """The page. Only this very style sheet is allowed, by its hash.

    more_style: rules beside the house's. pictures: whether there are some, which must stand in the page.
    """
    sheet = SHEET + more_style
    digest = base64.b64encode(hashlib.sha256(sheet.encode()).digest()).decode()
    shown = " img-src data:;" if pictures else ""
    policy = f"default-src 'none';{shown} style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="referrer", content="no-referrer"),
        element("meta", name_="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(sheet)),
    )
    body = element("body", top, element("main", *content), element("footer", footer))
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"


def header(over: str, title: str, below: Html, tiles: Sequence[tuple[str, str, str]]) -> Html:
    """The page's head: what it is of, and its great figures as (name, value, what is to say of it)."""
    figures = [
        element(
            "div",
            element("dt", name),
            element("dd", element("div", value, class_="value"), element("div", under, class_="under")),
        )
        for name, value, under in tiles
    ]
    return element(
        "header",
        element("div", over, class_="eyebrow"),
        element("h1", element("bdi", title)),
        below,
        element("dl", *figures, class_="tiles six" if len(figures) == 6 else "tiles"),
    )
