"""Near-duplicates side by side, with the words that differ marked."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.report.excerpts import box
from data_pipeline.report.markup import Html, element, join
from data_pipeline.report.numbers import plural, ratio

#: Words compared; what comes after is shown unmarked. Bounds the time, which grows with more than the square.
MOST_WORDS = 300
_AT_ONCE = 4
#: A run of letters is a word where spaces part words; Chinese and Japanese characters are words of their own.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


def pairs(found: Sequence[Mapping[str, Any]]) -> Html:
    """The pairs, in the order given: some at once, the others when asked for."""
    if not found:
        return element("p", "No pair to show.", class_="empty")
    shown = [_pair(number, pair) for number, pair in enumerate(found, start=1)]
    note = element("p", "Words that only one of the two texts has are marked.", class_="note")
    if len(shown) <= _AT_ONCE:
        return join(note, *shown)
    more = element("summary", f"{plural(len(shown) - _AT_ONCE, 'more pair')}")
    return join(note, *shown[:_AT_ONCE], element("details", more, *shown[_AT_ONCE:]))


def mark_differences(kept: str, dropped: str) -> tuple[Html, Html]:
    """Both texts, with the words marked that the other has not; the first `MOST_WORDS` of each are compared."""
    words = [list(itertools.islice(_WORD.finditer(text), MOST_WORDS)) for text in (kept, dropped)]
    ours, theirs = ([word[0] for word in side] for side in words)
    matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    changes = [change for change in matcher.get_opcodes() if change[0] != "equal"]
    return (
        _marked(kept, words[0], [(begin, end) for _, begin, end, _, _ in changes]),
        _marked(dropped, words[1], [(begin, end) for _, _, _, begin, end in changes]),
    )


def _marked(text: str, words: Sequence[re.Match[str]], runs: Sequence[tuple[int, int]]) -> Html:
    pieces: list[str] = []
    at = 0
    for begin, end in runs:
        if begin < end:
            left, right = words[begin].start(), words[end - 1].end()
            pieces += [text[at:left], element("mark", text[left:right])]
            at = right
    return join(*pieces, text[at:])


def _pair(number: int, pair: Mapping[str, Any]) -> Html:
    kept, dropped = pair["kept"], pair["dropped"]
    texts = mark_differences(kept["excerpt"], dropped["excerpt"])
    sides = [
        _side(word, side, text) for word, side, text in zip(("kept", "dropped"), (kept, dropped), texts, strict=True)
    ]
    title = element("h3", f"Pair {number}: Jaccard {ratio(pair['jaccard'])}")
    return element("div", title, element("div", *sides, class_="excerpts"), class_="pair")


def _side(word: str, side: Mapping[str, Any], text: Html) -> Html:
    head = join(f"{word}: ", element("bdi", side["corpus"]), " · ", element("bdi", side["source"]))
    return box("div", head, text, f"{word} document", word)
