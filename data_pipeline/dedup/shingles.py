"""Documents → normalised text → words → shingles: the 64-bit hash of every run of a few words.

Normalised is `" ".join(text.casefold().split())`: what differs in letter case and whitespace alone is equal. Words are
the maximal runs of its bytes that are neither space nor ASCII punctuation; a Chinese or Japanese character (U+3000 to
U+9FFF) is a word of its own, for such text has no spaces. A document of fewer words than a shingle has one shingle of
all of them; one without words has none.

The loops over bytes are compiled by numba at their first use and cached on disk beside this file (or in
NUMBA_CACHE_DIR). Everything is a function of the document alone, whatever batch it is in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.kernels import compiled

#: No character from here on is whitespace or has a case.
_CASED_CHARACTERS = 0x20000
_WHITESPACE, _SPACE = -1, 32
_LETTER, _SEPARATOR, _IDEOGRAPH = 0, 1, 2
_ASCII_PUNCTUATION = b"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"

# Odd constants with bits in irregular places: splitmix64's (Steele et al. 2014, figure 16) and two of xxHash's primes.
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_LENGTH, _ORDER = np.uint64(0x9E3779B185EBCA87), np.uint64(0xC2B2AE3D27D4EB4F)


@dataclass
class Shingles:
    """Of consecutive documents; what was not wanted has no bytes and no shingles."""

    text: NDArray[np.uint8]
    """The normalised texts end to end, UTF-8."""
    text_starts: NDArray[np.int64]
    """[documents + 1]"""
    hashes: NDArray[np.uint64]
    """Of the shingles in their order, end to end; equal shingles have equal hashes."""
    starts: NDArray[np.int64]
    """[documents + 1]"""


def shingle(
    data: NDArray[np.uint8], starts: NDArray[np.int64], wanted: NDArray[np.bool_], shingle_words: int
) -> Shingles:
    """The shingles of the wanted ones of the UTF-8 documents `data[starts[i] : starts[i + 1]]`."""
    documents, size = len(starts) - 1, int(starts[-1] - starts[0])
    text = np.empty(_growth() * size + 8, dtype=np.uint8)  # 8: the last word is read as 8 bytes, too
    text_starts, hash_starts = np.zeros(documents + 1, dtype=np.int64), np.zeros(documents + 1, dtype=np.int64)
    lower, slots, folded, folded_length, kinds = _tables()
    compiled(_normalise)(data, starts, wanted, lower, slots, folded, folded_length, text, text_starts)
    written = int(text_starts[-1])
    longest = int(np.diff(text_starts).max(initial=0))
    runs = np.empty(longest + 2, dtype=np.uint64)
    hashes = np.empty((written + documents) // 2 + 1, dtype=np.uint64)
    compiled(_hash)(text, text_starts, kinds, np.uint64(shingle_words), runs, hashes, hash_starts)
    return Shingles(text[:written], text_starts, hashes[: hash_starts[-1]], hash_starts)


@cache
def _tables() -> tuple[NDArray[Any], ...]:
    """For the kernels, from Python's own Unicode data.

    lower: for an ASCII byte, what it is folded to; whitespace to a space. slots: for a character, 0 if folding leaves
    it as it is, -1 if it is whitespace, or the row of `folded` and `folded_length` with the UTF-8 it becomes. kinds:
    for a byte of normalised text, what it is in a word.
    """
    slots = np.zeros(_CASED_CHARACTERS, dtype=np.int16)
    folds = [b""]
    for code, character in enumerate(map(chr, range(_CASED_CHARACTERS))):
        if character.isspace():
            slots[code] = _WHITESPACE
        elif (fold := character.casefold()) != character:
            slots[code] = len(folds)
            folds.append(fold.encode())
    folded = np.zeros((len(folds), max(map(len, folds))), dtype=np.uint8)
    for row, fold_bytes in zip(folded, folds, strict=True):
        row[: len(fold_bytes)] = list(fold_bytes)
    folded_length = np.array([len(fold_bytes) for fold_bytes in folds], dtype=np.int64)
    ascii_slots = slots[:128]
    lower = np.where(ascii_slots > 0, folded[ascii_slots, 0], np.arange(128, dtype=np.uint8))
    lower[ascii_slots == _WHITESPACE] = _SPACE
    kinds = np.full(256, _LETTER, dtype=np.uint8)
    kinds[list(b" " + _ASCII_PUNCTUATION)] = _SEPARATOR
    kinds[0xE3:0xEA] = _IDEOGRAPH
    return lower, slots, folded, folded_length, kinds


@cache
def _growth() -> int:
    """How many times as long as a character its folded form can be, in UTF-8, rounded up."""
    _, slots, _, folded_length, _ = _tables()
    return max(-(-int(folded_length[slots[code]]) // len(chr(code).encode())) for code in np.flatnonzero(slots > 0))


# The kernels' counts and places are unsigned: numba tests a signed index for being negative, at every byte.
_0, _1, _8 = np.uint64(0), np.uint64(1), np.uint64(8)


def _normalise(
    data: Any,
    starts: Any,
    wanted: Any,
    lower: Any,
    slots: Any,
    folded: Any,
    folded_length: Any,
    text: Any,
    text_starts: Any,
) -> None:
    written = _0
    for document in range(len(starts) - 1):
        begin = written
        i, end = np.uint64(starts[document]), np.uint64(starts[document + 1])
        if not wanted[document]:
            i = end
        after_space = _1
        while i < end:
            byte = np.uint64(data[i])
            # A byte is always written, and stays if the place moves on: no branch to be guessed wrongly.
            if byte < 0x80:
                folded_byte = lower[byte]
                text[written] = folded_byte
                is_space = np.uint64(folded_byte == _SPACE)
                written += _1 - (is_space & after_space)
                after_space = is_space
                i += _1
                continue
            length = np.uint64(2) if byte < 0xE0 else np.uint64(3) if byte < 0xF0 else np.uint64(4)
            code = byte & (np.uint64(0x7F) >> length)
            for k in range(1, length):
                code = (code << np.uint64(6)) | np.uint64(data[i + np.uint64(k)] & 0x3F)
            slot = np.int64(slots[code]) if code < len(slots) else 0
            if slot == _WHITESPACE:
                text[written] = _SPACE
                written += _1 - after_space
                after_space = _1
            else:
                size = np.uint64(folded_length[slot]) if slot else length
                for k in range(size):
                    at = np.uint64(k)
                    text[written + at] = folded[slot, k] if slot else data[i + at]
                written += size
                after_space = _0
            i += length
        if written > begin and text[written - _1] == _SPACE:
            written -= _1
        text_starts[document + 1] = written


def _hash(
    text: Any, text_starts: Any, kinds: Any, shingle_words: Any, runs: Any, hashes: Any, hash_starts: Any
) -> None:
    recent = np.zeros(shingle_words, dtype=np.uint64)
    leaving = _1
    for _ in range(shingle_words):
        leaving *= _ORDER
    shingles = _0
    for document in range(len(text_starts) - 1):
        begin, end = np.uint64(text_starts[document]), np.uint64(text_starts[document + 1])
        # Where runs of letters, runs of separators and ideographs begin. An ideograph's run ends after three bytes.
        count, i = _0, begin
        before, ideographs = _0, _0
        while i < end:
            kind = np.uint64(kinds[text[i]])
            runs[count] = i
            separator = kind & _1
            ideographs = (ideographs << _1) | (kind >> _1)
            count += (
                (separator ^ before) | (ideographs & _1) | ((ideographs >> np.uint64(3)) & _1) | np.uint64(i == begin)
            )
            before = separator
            i += _1
        runs[count] = end
        # The words' hashes, 8 bytes at a time, and a polynomial that rolls over them.
        recent[:] = _0
        words, place, rolling, run = _0, _0, _0, _0
        while run < count:
            i, word_end = runs[run], runs[run + _1]
            run += _1
            if kinds[text[i]] == _SEPARATOR:
                continue
            word = (word_end - i) * _LENGTH
            while i < word_end:
                # In one expression, which becomes one load.
                piece = (
                    np.uint64(text[i])
                    | (np.uint64(text[i + _1]) << _8)
                    | (np.uint64(text[i + np.uint64(2)]) << np.uint64(16))
                    | (np.uint64(text[i + np.uint64(3)]) << np.uint64(24))
                    | (np.uint64(text[i + np.uint64(4)]) << np.uint64(32))
                    | (np.uint64(text[i + np.uint64(5)]) << np.uint64(40))
                    | (np.uint64(text[i + np.uint64(6)]) << np.uint64(48))
                    | (np.uint64(text[i + np.uint64(7)]) << np.uint64(56))
                )
                piece <<= (_8 - min(word_end - i, _8)) * _8  # without what follows the word
                word = (word ^ piece) * _MIX_1
                word = (word ^ (word >> np.uint64(31))) * _MIX_2
                word ^= word >> np.uint64(30)
                i += _8
            rolling = rolling * _ORDER + word - recent[place] * leaving
            recent[place] = word
            place = place + _1 if place + _1 < shingle_words else _0
            words += _1
            value = (rolling ^ (rolling >> np.uint64(30))) * _MIX_1
            value = (value ^ (value >> np.uint64(27))) * _MIX_2
            hashes[shingles] = value ^ (value >> np.uint64(31))
            shingles += np.uint64(words >= shingle_words)
        shingles += np.uint64(_0 < words) & np.uint64(words < shingle_words)
        hash_starts[document + 1] = shingles
