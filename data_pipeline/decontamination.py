"""Cuts evaluation sets out of training text: Brown et al. 2020, appendix C.

What matches is 13 words in a row, lower-case, delimited by whitespace and without punctuation. A match is removed with
200 characters on either side, which splits the document. Pieces of fewer than 200 characters are dropped, and so are
documents that fall into more than 10 pieces. 13-grams in more than 10 training documents are common phrases: ignored.

Readings of what the paper leaves open:

- An evaluation text of fewer than 13 words counts as one gram of all its words, down to 8, below which it is not looked
  for. (The paper sets one length for each evaluation set: the 5th percentile of its texts' lengths, within 8 to 13.)
- The window of 200 characters lies on each side of the match, and ends where a word does: half a word is no word.
- Pieces are counted before the short ones are dropped.
- Symbols such as $ and + are punctuation, and go from inside words too: "don't" is "dont". A word of nothing else
  vanishes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import BadConfig, EnvironmentFailure
from data_pipeline.kernels import compiled
from data_pipeline.stages.words import find_words

#: gram_index: which gram, start and end: where, in characters of the text. [matches] each, in order of place.
Matches = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]

_ORDER, _MIX = np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0xBF58476D1CE4E5B9)
_29 = np.uint64(29)
_ANY = np.ones(1, dtype=bool)
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile)


@dataclass
class DecontaminationConfig:
    """Evaluation sets, and how they are cut out of the training text (Brown et al. 2020, appendix C)."""

    evaluation_sets: list[str] = field(default_factory=list)
    """Files, folders or globs with the texts that must not be trained on."""
    text_field: str = "text"
    """Field with the text, in JSON lines and parquet."""
    ngram_words: int = 13
    """Words in a row that make a match."""
    min_words: int = 8
    """Evaluation texts of fewer words than ngram_words match as a whole, if they have this many."""
    window_characters: int = 200
    """Characters that are removed on either side of a match."""
    min_piece_characters: int = 200
    """Shorter pieces are dropped."""
    max_pieces: int = 10
    """Documents that fall into more pieces are dropped."""
    max_gram_documents: int = 10
    """Grams that occur in more training documents are ignored."""

    def check(self) -> None:
        """Raises BadConfig for a value that cannot work."""
        if not 1 <= self.min_words <= self.ngram_words:
            raise BadConfig(
                f"decontaminate: min_words is {self.min_words} and ngram_words {self.ngram_words}, but it takes "
                "1 <= min_words <= ngram_words"
            )
        for name in ("window_characters", "min_piece_characters", "max_pieces", "max_gram_documents"):
            if getattr(self, name) < 0:
                raise BadConfig(f"decontaminate.{name} is {getattr(self, name)}, it must not be negative")


@dataclass(frozen=True)
class EvaluationGrams:
    """The grams to look for, by length; a gram's index is its place in `hashes`."""

    lengths: NDArray[np.int64]
    """[lengths] Words, ascending."""
    starts: NDArray[np.int64]
    """[lengths + 1] Where the grams of each length begin in `hashes`."""
    hashes: NDArray[np.uint64]
    """Those of one length are sorted and differ."""

    def __len__(self) -> int:
        return len(self.hashes)

    @cached_property
    def last_bits(self) -> NDArray[np.bool_]:
        """[a power of two] Which last bits some gram's hash has; seven in eight of a text's grams need no more."""
        seen = np.zeros(1 << max(10, (8 * len(self)).bit_length()), dtype=bool)
        seen[self.hashes & np.uint64(len(seen) - 1)] = True
        return seen

    @classmethod
    def of(cls, texts: Iterable[str], config: DecontaminationConfig) -> EvaluationGrams:
        """The grams of evaluation texts. Raises BadConfig for lengths that cannot be."""
        config.check()
        by_length: dict[int, list[NDArray[np.uint64]]] = {}
        for text in texts:
            words = find_words(text, "bare").hashes
            if len(words) >= config.min_words:
                length = min(len(words), config.ngram_words)
                by_length.setdefault(length, []).append(_gram_hashes(words, length, _ANY)[0])
        lengths = sorted(by_length)
        unique = [np.unique(np.concatenate(by_length[length])) for length in lengths]
        starts = np.cumsum([0] + [len(hashes) for hashes in unique], dtype=np.int64)
        return cls(np.array(lengths, dtype=np.int64), starts, np.concatenate([np.zeros(0, np.uint64), *unique]))

    def save(self, path: Path) -> None:
        """Writes one .npz file; equal grams give equal bytes."""
        with open(path, "wb") as file:
            np.savez(file, lengths=self.lengths, starts=self.starts, hashes=self.hashes)

    @classmethod
    def load(cls, path: Path) -> EvaluationGrams:
        """What `save` wrote. Raises EnvironmentFailure for anything else."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                lengths, starts, hashes = arrays["lengths"], arrays["starts"], arrays["hashes"]
        except _UNREADABLE as error:
            raise EnvironmentFailure(f"{path} holds no n-grams or is damaged ({error}): make it again") from error
        types = [array.dtype.name for array in (lengths, starts, hashes)]
        fit = types == ["int64", "int64", "uint64"] and lengths.ndim == hashes.ndim == 1
        fit = fit and starts.shape == (len(lengths) + 1,)
        if not (fit and starts[-1] == len(hashes) and np.all(np.diff(starts) > 0)):
            raise EnvironmentFailure(f"{path} holds no n-grams or is damaged: make it again")
        return cls(lengths, starts, hashes)


def matches(text: str, grams: EvaluationGrams) -> Matches:
    """Every occurrence of every gram in the text, overlapping ones too, in order of start and then of length."""
    words = find_words(text, "bare")
    found = [np.zeros((3, 0), dtype=np.int64)]
    for length, begin, end in zip(grams.lengths.tolist(), grams.starts, grams.starts[1:], strict=False):
        if len(words) < length:
            break
        hashes, first = _gram_hashes(words.hashes, length, grams.last_bits)
        if len(hashes):
            known = grams.hashes[begin:end]
            places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
            equal = known[places] == hashes
            first, places = first[equal], places[equal]
            found.append(np.stack([begin + places, words.starts[first], words.ends[first + length - 1]]))
    index, starts, ends = np.concatenate(found, axis=1)
    order = np.lexsort((ends, starts))
    return index[order], starts[order], ends[order]


def gram_documents(texts: Iterable[str], grams: EvaluationGrams) -> NDArray[np.int64]:
    """[grams] In how many of the texts each gram occurs."""
    counts = np.zeros(len(grams), dtype=np.int64)
    for text in texts:
        index, _, _ = matches(text, grams)
        counts[np.unique(index)] += 1
    return counts


def cut(text: str, found: Matches, ignored: NDArray[np.bool_], config: DecontaminationConfig) -> list[str] | None:
    """What is left of a text: pieces in order, [text] if nothing matches, None if it falls into too many pieces.

    found: what `matches` gave; ignored: [grams], those that are too frequent to count.
    """
    index, starts, ends = found
    counts = ~ignored[index]
    if not counts.any():
        return [text]
    pieces = list(_pieces(text, starts[counts].tolist(), ends[counts].tolist(), config.window_characters))
    if len(pieces) > config.max_pieces:
        return None
    return [piece for piece in pieces if len(piece) >= config.min_piece_characters]


def _pieces(text: str, starts: Sequence[int], ends: Sequence[int], window: int) -> Iterator[str]:
    """What lies between the windows, without whitespace at the cuts. The spans are in order of their starts."""
    begin = 0
    reached = 0  # the end of the matches so far
    for start, end in zip([*starts, len(text) + window], [*ends, 0], strict=True):
        stop = start - window
        if stop > begin:
            if stop < len(text):
                stop = _word_start(text, stop, begin)
            piece = text[begin:stop]
            piece = piece.lstrip() if begin else piece
            piece = piece.rstrip() if stop < len(text) else piece
            if piece:
                yield piece
        reached = max(reached, end)
        begin = max(begin, _word_end(text, min(reached + window, len(text))))


def _word_start(text: str, place: int, least: int) -> int:
    """The last place up to here at which no word is cut."""
    while place > least and not text[place].isspace() and not text[place - 1].isspace():
        place -= 1
    return place


def _word_end(text: str, place: int) -> int:
    """The first place from here on at which no word is cut."""
    while place < len(text) and not text[place].isspace() and not text[place - 1].isspace():
        place += 1
    return place


def _gram_hashes(
    words: NDArray[np.uint64], length: int, last_bits: NDArray[np.bool_]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The hashes of the runs of `length` words that have one of the last bits wanted, and where each begins."""
    hashes, first = np.empty(len(words), dtype=np.uint64), np.empty(len(words), dtype=np.int64)
    count = compiled(_roll)(words, length, last_bits, hashes, first)
    return hashes[:count], first[:count]


def _roll(words: Any, length: Any, last_bits: Any, hashes: Any, firsts: Any) -> Any:
    leaving = np.uint64(1)
    for _ in range(length):
        leaving *= _ORDER
    rolling, count = np.uint64(0), 0
    for last in range(len(words)):
        rolling = rolling * _ORDER + words[last]
        first = last - length + 1
        if first > 0:
            rolling -= leaving * words[first - 1]
        if first >= 0:
            key = (rolling ^ (rolling >> _29)) * _MIX
            key ^= key >> _29
            if last_bits[key & np.uint64(len(last_bits) - 1)]:
                hashes[count], firsts[count] = key, first
                count += 1
    return count
