"""Tables, with bars in them where they help."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from data_pipeline.report.markup import Html, element, join


def bar(fraction: float, kind: str = "documents", mark: float | None = None) -> Html:
    """A bar that fills its cell up to `fraction`; what is there at all is visible. mark: where a line crosses it."""
    width = max(100 * min(fraction, 1.0), 0.6) if fraction > 0 else 0.0
    line = element("rect", x=100 * mark - 0.3, width=0.6, height=10, class_="mark") if mark is not None else None
    return element(
        "svg",
        element("rect", width=100, height=10, class_="track"),
        element("rect", width=width, height=10, class_=kind),
        line,
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        class_="bar",
        aria_hidden="true",
    )


def number(written: str, under: str | None = None, kind: str = "number") -> Html:
    """A cell with a right-aligned number, and a small one under it."""
    below = element("small", under) if under else None
    return element("td", written, below, class_=kind)


def row(name: str, *cells: Html, swatch: int | None = None, link: str | None = None) -> Html:
    """A row: its name, as a header with a colour or a link if given, and its cells."""
    colour = element("span", class_=f"swatch colour-{swatch}", aria_hidden="true") if swatch is not None else None
    label = element("bdi", element("a", name, href=link) if link else name)
    return element("tr", element("th", colour, label, scope="row"), *cells)


def heads(names: Sequence[tuple[str, str]]) -> Html:
    """A table's head, of (name, class), such as ("Bytes", "number")."""
    return element(
        "thead", element("tr", *(element("th", name, scope="col", class_=kind or None) for name, kind in names))
    )


def table(
    caption: str, head: Sequence[tuple[str, str]], rows: Iterable[Html], foot: Html | None = None, kind: str = ""
) -> Html:
    """A table that scrolls sideways where it does not fit. caption: for those who cannot see it."""
    body = join(*rows)
    whole = element(
        "table",
        element("caption", caption),
        heads(head),
        body if body.startswith("<tbody") else element("tbody", body),
        element("tfoot", foot) if foot else None,
        class_=kind or None,
    )
    return element("div", whole, class_="scroll", role="region", aria_label=caption, tabindex="0")


def bars(caption: str, head: tuple[str, str, str], items: Sequence[tuple[str, float, str, str]], kind: str) -> Html:
    """A bar for each of (name, value, value as written, share as written), the longest for the greatest value."""
    top = max((value for _, value, _, _ in items), default=0.0) or 1.0
    rows = [
        row(name, element("td", bar(value / top, kind), class_="wide"), number(written), number(portion))
        for name, value, written, portion in items
    ]
    return table(caption, [(head[0], ""), ("", "wide"), (head[1], "number"), (head[2], "number")], rows, kind="bars")
