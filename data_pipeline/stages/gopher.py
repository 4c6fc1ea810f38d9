"""The quality rules of Gopher: Rae et al. 2021 (arXiv 2112.11446), appendix A.1.1, "Quality filtering"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from data_pipeline.documents import Document, StageFunction, Tally
from data_pipeline.errors import BadConfig
from data_pipeline.stages.words import document_lines, document_words

_ELLIPSES = ("...", "…")


@dataclass
class GopherConfig:
    """Quality rules of Rae et al. 2021; a document that breaks one is dropped."""

    min_words: int = 50
    """Fewest words, delimited by whitespace."""
    max_words: int = 100_000
    """Most words."""
    min_mean_word_length: float = 3.0
    """Characters a word, on average, at least."""
    max_mean_word_length: float = 10.0
    """Characters a word, on average, at most."""
    max_symbols_per_word: float = 0.1
    """Number signs for each word at most, and ellipses (... or …) for each word at most."""
    max_bullet_lines: float = 0.9
    """Share of the lines that may start with a bullet point."""
    bullets: list[str] = field(default_factory=lambda: ["•", "‣", "◦", "●", "▪", "■", "*", "-"])
    """What counts as a bullet point. The paper does not say."""
    max_ellipsis_lines: float = 0.3
    """Share of the lines that may end with an ellipsis."""
    min_words_with_letter: float = 0.8
    """Share of the words that contain at least one alphabetic character, at least."""
    min_stop_words: int = 2
    """How many of `stop_words` must occur."""
    stop_words: list[str] = field(default_factory=lambda: ["the", "be", "to", "of", "and", "that", "have", "with"])
    """English words that coherent English text contains; others for another language."""


def gopher(config: GopherConfig) -> StageFunction:
    """The stage. Thresholds themselves are allowed: a share of exactly 0.9 passes a maximum of 0.9.

    Readings of what the paper leaves open: words are what whitespace delimits, punctuation included; lines are what \\n
    separates, without those of whitespace alone; the two or more stop words are different ones, in any letter case, not
    inside a longer word.

    Raises BadConfig if there are fewer stop words than must occur.
    """
    if len(set(config.stop_words)) < config.min_stop_words:
        raise BadConfig(
            f"gopher: min_stop_words is {config.min_stop_words}, but stop_words has {len(set(config.stop_words))}: "
            "name more words, or ask for fewer"
        )
    find_reason = _Rules(config)

    def stage(documents: Iterable[Document], tally: Tally) -> Iterator[Document]:
        for document in documents:
            reason = find_reason(document.text)
            if reason is None:
                yield document
            else:
                tally.drop(f"gopher: {reason}", document.source, document.text)

    return stage


class _Rules:
    def __init__(self, config: GopherConfig) -> None:
        self.config = config
        self.bullets = tuple(config.bullets)
        words = "|".join(map(re.escape, config.stop_words))
        self.stop_words = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)

    def __call__(self, text: str) -> str | None:
        """Why the text is dropped, if it is: the first rule that it breaks."""
        config = self.config
        words = document_words(text)
        if len(words) < config.min_words:
            return f"fewer than {config.min_words} words"
        if len(words) > config.max_words:
            return f"more than {config.max_words} words"
        count = max(1, len(words))  # min_words may be 0
        mean_length = int((words.ends - words.starts).sum()) / count
        if mean_length < config.min_mean_word_length:
            return f"mean word length below {config.min_mean_word_length:g}"
        if mean_length > config.max_mean_word_length:
            return f"mean word length above {config.max_mean_word_length:g}"
        if text.count("#") / count > config.max_symbols_per_word:
            return f"more than {config.max_symbols_per_word:g} number signs a word"
        if sum(map(text.count, _ELLIPSES)) / count > config.max_symbols_per_word:
            return f"more than {config.max_symbols_per_word:g} ellipses a word"
        lines = [line for line in document_lines(text) if line]
        bullets = sum([line.startswith(self.bullets) for line in lines])
        if bullets / max(1, len(lines)) > config.max_bullet_lines:
            return f"more than {config.max_bullet_lines:g} of the lines start with a bullet"
        ellipses = sum([line.endswith(_ELLIPSES) for line in lines])
        if ellipses / max(1, len(lines)) > config.max_ellipsis_lines:
            return f"more than {config.max_ellipsis_lines:g} of the lines end with an ellipsis"
        if words.with_letter / count < config.min_words_with_letter:
            return f"less than {config.min_words_with_letter:g} of the words contain a letter"
        if not self._has_stop_words(text):
            return f"fewer than {config.min_stop_words} stop words"
        return None

    def _has_stop_words(self, text: str) -> bool:
        found: set[str] = set()
        matches = self.stop_words.finditer(text)
        while len(found) < self.config.min_stop_words:
            match = next(matches, None)
            if match is None:
                return False
            found.add(match.group().lower())
        return True
