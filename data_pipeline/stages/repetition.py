"""The repetition rules of Gopher: Rae et al. 2021 (arXiv 2112.11446), appendix A.1.1, table A1.

What the paper leaves open is read as datatrove does, where it says anything else than the paper's "contained within":

- Lines are what \\n separates, paragraphs what blank lines separate, both without the whitespace around them and never
  empty. One is a duplicate if an equal one stands before it; the first is not. The fraction of characters is that of
  the duplicates in all lines (paragraphs).
- Words are what whitespace delimits, as they stand; n-grams run over line ends. Fractions of characters are of the
  words' characters: whitespace does not count, on either side.
- The top n-gram is the one that occurs most often, at least twice; of several the one that covers most. Its fraction is
  that of the characters in any of its occurrences.
- The duplicate n-grams are those that occurred before in the document. Their fraction is that of the characters in any
  of them: a character in several overlapping ones counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.documents import Document, StageFunction, Tally
from data_pipeline.kernels import compiled
from data_pipeline.stages.words import Words, document_lines, document_words

_TOP_SIZES = (2, 3, 4)
_DUPLICATE_SIZES = (5, 6, 7, 8, 9, 10)
_ORDER, _MIX = np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0xBF58476D1CE4E5B9)
_29 = np.uint64(29)


@dataclass
class RepetitionConfig:
    """Largest fractions that a document may have (Rae et al. 2021, table A1); 1 turns a rule off."""

    duplicate_lines: float = 0.30
    """Duplicate lines in all lines."""
    duplicate_paragraphs: float = 0.30
    """Duplicate paragraphs in all paragraphs."""
    duplicate_line_characters: float = 0.20
    """Characters in duplicate lines."""
    duplicate_paragraph_characters: float = 0.20
    """Characters in duplicate paragraphs."""
    top_2_gram: float = 0.20
    """Characters in the most frequent run of 2 words."""
    top_3_gram: float = 0.18
    """... of 3 words."""
    top_4_gram: float = 0.16
    """... of 4 words."""
    duplicate_5_grams: float = 0.15
    """Characters in repeated runs of 5 words."""
    duplicate_6_grams: float = 0.14
    """... of 6 words."""
    duplicate_7_grams: float = 0.13
    """... of 7 words."""
    duplicate_8_grams: float = 0.12
    """... of 8 words."""
    duplicate_9_grams: float = 0.11
    """... of 9 words."""
    duplicate_10_grams: float = 0.10
    """... of 10 words."""


def repetition(config: RepetitionConfig) -> StageFunction:
    """The stage: drops documents with a fraction above its threshold. The module's docstring defines the fractions."""
    line_limits = [
        (config.duplicate_lines, "lines"),
        (config.duplicate_line_characters, "characters in duplicate lines"),
        (config.duplicate_paragraphs, "paragraphs"),
        (config.duplicate_paragraph_characters, "characters in duplicate paragraphs"),
    ]
    top_limits = [(getattr(config, f"top_{n}_gram"), f"characters in the top {n}-gram") for n in _TOP_SIZES]
    gram_limits = [
        (getattr(config, f"duplicate_{n}_grams"), f"characters in duplicate {n}-grams") for n in _DUPLICATE_SIZES
    ]

    def find_reason(text: str) -> str | None:
        broken = _first_above(line_fractions(text), line_limits)
        return broken or _first_above(gram_fractions(document_words(text)), top_limits + gram_limits)

    def stage(documents: Iterable[Document], tally: Tally) -> Iterator[Document]:
        for document in documents:
            reason = find_reason(document.text)
            if reason is None:
                yield document
            else:
                tally.drop(f"repetition: {reason}", document.source, document.text)

    return stage


def line_fractions(text: str) -> tuple[float, float, float, float]:
    """Duplicate lines, characters in them, duplicate paragraphs, characters in them, each as a fraction of all."""
    stripped = document_lines(text)
    lines = [line for line in stripped if line]
    pieces = [piece.strip("\n") for piece in "\n".join(stripped).split("\n\n")]
    return *_duplicates(lines), *_duplicates([piece for piece in pieces if piece])


def gram_fractions(words: Words) -> NDArray[np.float64]:
    """[9] Fractions of the characters: in the top 2-, 3- and 4-gram, in the duplicate 5- to 10-grams."""
    fractions = np.zeros(len(_TOP_SIZES) + len(_DUPLICATE_SIZES))
    until = np.zeros(len(words) + 1, dtype=np.int64)  # characters of the words before each
    np.cumsum(words.ends - words.starts, out=until[1:])
    slots = 1 << (3 * len(words) // 2).bit_length()  # at most two thirds are taken
    compiled(_gram_fractions)(words.hashes, until, len(_TOP_SIZES), slots, fractions)
    return fractions


def _duplicates(pieces: Sequence[str]) -> tuple[float, float]:
    distinct = set(pieces)
    if len(distinct) == len(pieces):
        return 0.0, 0.0
    characters = sum(map(len, pieces))
    # Whole numbers are divided once, so that exactly 3 in 10 is not above 0.3.
    return (len(pieces) - len(distinct)) / len(pieces), (characters - sum(map(len, distinct))) / characters


def _first_above(fractions: Iterable[float], limits: Iterable[tuple[float, str]]) -> str | None:
    for fraction, (limit, name) in zip(fractions, limits, strict=True):
        if fraction > limit:
            duplicates = "are duplicates" if name in ("lines", "paragraphs") else ""
            return f"more than {limit:g} of the {name} {duplicates}".rstrip()
    return None


def _gram_fractions(words: Any, until: Any, tops: Any, slots: Any, fractions: Any) -> None:
    # An open-addressed table from an n-gram's hash to how often it occurred, the characters it covers and where its
    # last occurrence ended. `sizes` says for which n a slot is taken, so that nothing is cleared in between.
    keys = np.empty(slots, dtype=np.uint64)
    sizes = np.zeros(slots, dtype=np.int8)
    counts, covered, ends = np.empty(slots, np.int32), np.empty(slots, np.int64), np.empty(slots, np.int64)
    total = until[len(words)]
    for rule in range(len(fractions)):
        size = rule + 2
        leaving = np.uint64(1)
        for _ in range(size):
            leaving *= _ORDER
        rolling = np.uint64(0)
        most, most_covered, repeated, end = 1, 0, 0, 0
        for last in range(len(words)):
            rolling = rolling * _ORDER + words[last]
            if last >= size:
                rolling -= leaving * words[last - size]
            first = last - size + 1
            if first < 0:
                continue
            key = (rolling ^ (rolling >> _29)) * _MIX
            key ^= key >> _29
            slot = np.int64(key & np.uint64(slots - 1))
            while sizes[slot] == size and keys[slot] != key:
                slot = (slot + 1) & (slots - 1)
            if sizes[slot] != size:
                sizes[slot], keys[slot], counts[slot] = size, key, 1
                covered[slot], ends[slot] = until[last + 1] - until[first], last + 1
                continue
            if rule < tops:
                counts[slot] += 1
                covered[slot] += until[last + 1] - until[max(first, ends[slot])]
                ends[slot] = last + 1
                if counts[slot] > most or (counts[slot] == most and covered[slot] > most_covered):
                    most, most_covered = counts[slot], covered[slot]
            else:
                repeated += until[last + 1] - until[max(first, end)]
                end = last + 1
        if total:
            fractions[rule] = (most_covered if rule < tops else repeated) / total
