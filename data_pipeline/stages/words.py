"""A document's words and lines, found once for all the filters that look at them.

Words are what whitespace delimits. The loop over characters is compiled by numba at its first use.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.kernels import compiled

#: plain: as it stands. lower: in lower case. bare: in lower case and without punctuation and symbols; a word of nothing
#: else vanishes.
Form = Literal["plain", "lower", "bare"]

#: From here on Unicode has ideographs, which are letters without case, and a few invisible selectors.
_TABLE_CHARACTERS = 0x20000
_SPACE, _SKIPPED, _LETTER = np.uint32(1 << 30), np.uint32(1 << 29), np.uint32(1 << 28)
_CODE = np.uint64((1 << 21) - 1)
# splitmix64's constants (Steele et al. 2014, figure 16).
_GOLDEN, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_27, _30, _31 = np.uint64(27), np.uint64(30), np.uint64(31)


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one text, in order."""

    starts: NDArray[np.int64]
    """[words] First character of each, in the text as it stands."""
    ends: NDArray[np.int64]
    """[words] One past its last character."""
    hashes: NDArray[np.uint64]
    """[words] Well mixed; equal for words that are equal in the form asked for."""
    with_letter: int
    """Words that contain at least one alphabetic character."""

    def __len__(self) -> int:
        return len(self.hashes)


def find_words(text: str, form: Form) -> Words:
    """The words of a text. Any text will do, lone surrogates included."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    most = len(codes) // 2 + 1
    starts, ends, hashes = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.uint64)
    count, with_letter = compiled(_scan)(codes, _table(form), starts, ends, hashes)
    return Words(starts[:count], ends[:count], hashes[:count], int(with_letter))


@lru_cache(maxsize=1)
def document_words(text: str) -> Words:
    """The plain words; remembered for the filters that see the same document next."""
    return find_words(text, "plain")


@lru_cache(maxsize=1)
def document_lines(text: str) -> tuple[str, ...]:
    """The lines without the whitespace around them, empty ones too; remembered as the words are."""
    return tuple([line.strip() for line in text.split("\n")])


@cache
def _table(form: Form) -> NDArray[np.uint32]:
    """For a character: what it is taken for in a word, and whether it is whitespace, skipped or a letter."""
    table = np.arange(_TABLE_CHARACTERS, dtype=np.uint32)
    for code, character in enumerate(map(chr, range(_TABLE_CHARACTERS))):
        if character.isspace():
            table[code] = _SPACE
        elif form == "bare" and unicodedata.category(character)[0] in "PS":
            table[code] = _SKIPPED
        else:
            lower = character.lower() if form != "plain" else character
            table[code] = ord(lower) if len(lower) == 1 else code
            if character.isalpha():
                table[code] |= _LETTER
    return table


def _scan(codes: Any, table: Any, starts: Any, ends: Any, hashes: Any) -> Any:
    words, with_letter, start = 0, 0, -1
    mixed, empty, letter = _GOLDEN, True, False
    for i in range(len(codes) + 1):
        entry = _SPACE
        if i < len(codes):
            entry = table[codes[i]] if codes[i] < _TABLE_CHARACTERS else np.uint32(codes[i] | _LETTER)
        if entry & _SPACE:
            if not empty:
                starts[words], ends[words] = start, i
                hashes[words] = (mixed ^ (mixed >> _30)) * _MIX_2
                words += 1
                with_letter += letter
            start, mixed, empty, letter = -1, _GOLDEN, True, False
            continue
        if start < 0:
            start = i
        if not entry & _SKIPPED:
            mixed = (mixed ^ (np.uint64(entry) & _CODE)) * _MIX_1
            mixed ^= mixed >> _27
            empty = False
            letter = letter or (entry & _LETTER) != 0
    return words, with_letter
