"""How numbers are written."""

from __future__ import annotations

import math

_SPACE = "\u00a0"
_MINUS = "\u2212"


def count(number: float) -> str:
    """1,234,567; with a real minus sign."""
    return f"{number:,.0f}".replace("-", _MINUS)


def magnitude(number: float) -> str:
    """Three digits and a word: 3.31 billion. Below 100,000 all digits."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if number >= max(0.9995 * size, 1e5):
            return f"{_three(number / size)}{_SPACE}{word}"
    return count(number)


def short(number: float) -> str:
    """For axes: 1.5 k, 20 M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{_SPACE}{letter}"
    return f"{number:g}"


def size(number: float) -> str:
    """Bytes in powers of 1,000: 123 B, 4.57 MB; with a real minus sign."""
    sign, number = (_MINUS if number < 0 else ""), abs(number)
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= 0.9995 * unit:
            return f"{sign}{_three(number / unit)}{_SPACE}{name}"
    return f"{sign}{number:.0f}{_SPACE}B"


def round_size(number: float) -> str:
    """A round number of bytes, for axes: 50 B, 1 kB."""
    return short(number) + ("B" if number >= 1e3 else f"{_SPACE}B")


def share(part: float, whole: float) -> str:
    """Per cent; never 0 or 100 for what is not. A dash where there is no whole."""
    if whole <= 0:
        return "–"
    percent = 100 * part / whole
    if 0 < percent < 0.05:
        return f"<0.1{_SPACE}%"
    if 99.95 <= percent < 100 - 1e-9:  # sums of shares are not exact
        return f">99.9{_SPACE}%"
    return f"{percent:.{0 if percent == 0 or abs(percent - 100) < 1e-9 else 1}f}{_SPACE}%"


def loss(part: float, whole: float, written: str) -> tuple[str, str]:
    """What a step lost, as `written` and as a share of what came in; empty if nothing. A gain has a plus."""
    if part == 0:
        return "–", ""
    sign = _MINUS if part > 0 else "+"
    portion = share(abs(part), whole)
    return sign + written, portion if portion[0] in "<–" else sign + portion


def ratio(number: float | None) -> str:
    """Two digits after the point, one above 100; a dash for what cannot be computed."""
    if number is None or not math.isfinite(number):
        return "–"
    if 0 < number < 0.005:
        return "<0.01"
    return f"{number:,.2f}" if number < 100 else f"{number:,.1f}"


def duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 2 h 03 min."""
    if seconds < 59.95:
        return f"{seconds:.1f}{_SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{_SPACE}min{_SPACE}{rest:02}{_SPACE}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{count(hours)}{_SPACE}h{_SPACE}{minutes:02}{_SPACE}min"


def plural(number: int, one: str, many: str | None = None) -> str:
    """1 document, 2,000 documents."""
    return f"{count(number)}{_SPACE}{one if number == 1 else many or one + 's'}"


def _three(number: float) -> str:
    return f"{number:.2f}" if number < 9.995 else f"{number:.1f}" if number < 99.95 else f"{number:.0f}"
