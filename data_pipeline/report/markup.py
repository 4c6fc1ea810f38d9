"""HTML elements out of untrusted text."""

from __future__ import annotations

import html
import re

#: What could hide, reorder or break text: control characters but tab and newline, the marks, embeddings, overrides and
#: isolates of the bidirectional algorithm, invisible separators and tags, surrogates and noncharacters.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
_VOID = ("br", "meta")


class Html(str):
    """Markup: a string that needs no escaping any more."""

    __slots__ = ()


def escape(text: str) -> Html:
    """Text as it can stand between tags and in quoted attributes, in HTML and in SVG.

    A character that hides, reorders or breaks text becomes its number, such as ⟨U+202E⟩; a surrogate becomes U+FFFD.
    """
    return text if isinstance(text, Html) else Html(html.escape(_UNSAFE.sub(_visible, text), quote=True))


def join(*content: str | None) -> Html:
    """One piece of markup of many; plain strings are escaped, None is left out."""
    return Html("".join([escape(piece) for piece in content if piece is not None]))


def element(name: str, *content: str | None, **attributes: str | float | bool | None) -> Html:
    """`<name attributes>content</name>`; plain strings are escaped.

    In attribute names a trailing underscore goes and others become hyphens. None and False leave an attribute out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{written}>" if name in _VOID else f"<{name}{written}>{join(*content)}</{name}>")


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return escape(value)
    if value is True:
        return ""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    return "\ufffd" if 0xD800 <= code < 0xE000 or code in (0xFFFD, 0xFFFE, 0xFFFF) else f"⟨U+{code:04X}⟩"
