"""Captions as tokens: `[sot] + ids + [eot]`, cut to the context with the end kept, padded with 0.

For a base vocabulary of V tokens sot is V and eot is V + 1, so that the end of the text is where the largest id is
(Radford et al. 2021, and `CLIPModel` since): V is 49,406 for CLIP's own byte pairs. A caption cannot write sot or eot
itself: "<|endoftext|>" in it is text like any other.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import itertools
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import BadTokenizer
from data_pipeline.tokenizer import Tokenizer

FILES = ("tokenizer.model", "merges.txt", "merges.txt.gz")
"""Names of a caption tokenizer's file beside shard sets."""

CLIP_MERGES = 49152 - 256 - 2
"""The first so many of the merges that CLIP's file has; it ships far more."""
_MERGES_BYTES = 64 << 20
_WORDS = 1 << 16


class CaptionTokenizer(Protocol):
    """Turns captions into rows of tokens."""

    path: Path
    sha256: str
    """What it is, whatever its file is called and however it is compressed."""
    vocab_size: int
    """With sot and eot, the two largest ids."""
    sot_id: int
    eot_id: int

    def encode(self, captions: Sequence[str], context_length: int) -> NDArray[np.int64]:
        """[n, context_length]. Any text has tokens: what UTF-8 cannot hold is replaced."""


def open_caption_tokenizer(path: str | Path) -> CaptionTokenizer:
    """A SentencePiece model, or CLIP's byte-pair merges (a text file, plain or compressed). Raises BadTokenizer."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise BadTokenizer(f"tokenizer {path} cannot be read: {error.strerror}") from error
    if path.name.endswith((".txt", ".gz")) or start.startswith(b"\x1f\x8b") or b"#version" in start:
        return BytePairCaptions(path)
    return SentencePieceCaptions(path)


class SentencePieceCaptions:
    """Captions through one of our lossless SentencePiece tokenizers, as they are written."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = Tokenizer(path)
        self.path, self.sha256 = path, self._tokenizer.sha256
        self.sot_id = self._tokenizer.vocab_size
        self.eot_id = self.sot_id + 1
        self.vocab_size = self.sot_id + 2

    def encode(self, captions: Sequence[str], context_length: int) -> NDArray[np.int64]:
        """As `CaptionTokenizer.encode`."""
        texts = [text.encode("utf-8", "replace").decode() for text in captions]
        return framed(self._tokenizer.encode_batch(texts, threads=1), context_length, self.sot_id, self.eot_id)


class BytePairCaptions:
    """CLIP's own byte-level byte pairs, from its merges file (bpe_simple_vocab_16e6.txt, or merges.txt of an export).

    Of the file's merges the first 48,894 count, as in CLIP. Text is unescaped from HTML twice, brought into Unicode's
    form NFC, freed of repeated white space and lower-cased. CLIP has the package ftfy mend mis-decoded text (mojibake)
    before that; this does not, and so equals Hugging Face's tokenizer, which does not either: mend such captions before
    training if there are any.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        merges = _read_merges(path)
        self.sha256 = hashlib.sha256("\n".join(merges).encode()).hexdigest()
        byte_symbols = _byte_symbols()
        symbols = [*byte_symbols.values(), *(s + "</w>" for s in byte_symbols.values())]
        # In CLIP's order of bytes, which begins with those that can be printed.
        self._of_byte = [0] * 256
        for number, byte in enumerate(byte_symbols):
            self._of_byte[byte] = number
        known = {symbol: number for number, symbol in enumerate(symbols)}
        self._merges: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, line in enumerate(merges):
            first, _, second = line.partition(" ")
            if first not in known or second not in known:
                raise BadTokenizer(f"tokenizer {path}: merge {rank + 1}, {line!r}, joins what no merge before it made")
            number = len(symbols) + rank
            self._merges.setdefault((known[first], known[second]), (rank, number))
            known[first + second] = number
        self.sot_id = len(symbols) + len(merges)
        self.eot_id = self.sot_id + 1
        self.vocab_size = self.sot_id + 2
        self._word = lru_cache(_WORDS)(self._merged)
        self._words = _word_pattern()

    def encode(self, captions: Sequence[str], context_length: int) -> NDArray[np.int64]:
        """As `CaptionTokenizer.encode`."""
        return framed([self._ids(text, context_length) for text in captions], context_length, self.sot_id, self.eot_id)

    def _ids(self, text: str, enough: int) -> list[int]:
        ids: list[int] = []
        for word in self._words.findall(cleaned(text)):
            ids.extend(self._word(word) if len(word) <= 64 else self._merged(word))
            if len(ids) >= enough:
                break
        return ids

    def _merged(self, word: str) -> tuple[int, ...]:
        """A word's bytes, of which the last bears the word's end, joined by the merge of lowest rank."""
        ids = [self._of_byte[byte] for byte in word.encode("utf-8", "replace")]
        ids[-1] += 256
        while len(ids) > 1:
            pairs = [self._merges.get(pair, (sys.maxsize, 0)) for pair in itertools.pairwise(ids)]
            rank, number = min(pairs)
            if rank == sys.maxsize:
                break
            joined: list[int] = []
            i = 0
            while i < len(ids):
                if i < len(pairs) and pairs[i][0] == rank:
                    joined.append(number)
                    i += 2
                else:
                    joined.append(ids[i])
                    i += 1
            ids = joined
        return tuple(ids)


def framed(
    texts: Sequence[Sequence[int] | NDArray[np.int32]], context_length: int, sot_id: int, eot_id: int
) -> NDArray[np.int64]:
    """[n, context_length]: sot, the ids that fit, eot, zeros."""
    if context_length < 2:
        raise ValueError("a context has room for the start and the end of a text at least")
    out = np.zeros((len(texts), context_length), dtype=np.int64)
    out[:, 0] = sot_id
    for row, ids in zip(out, texts, strict=True):
        count = min(len(ids), context_length - 2)
        row[1 : 1 + count] = ids[:count]
        row[1 + count] = eot_id
    return out


def cleaned(text: str) -> str:
    """As CLIP's byte pairs see it."""
    text = unicodedata.normalize("NFC", html.unescape(html.unescape(text)))
    return " ".join(text.split()).lower()


def _read_merges(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            with gzip.open(path, "rb") as file:
                content = file.read(_MERGES_BYTES)
        lines = content.decode().split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise BadTokenizer(f"tokenizer {path} cannot be read: {why}") from error
    if "#version" in lines[0]:
        del lines[0]
    merges = [line.strip() for line in lines if line.strip()][:CLIP_MERGES]
    if not merges or any(line.count(" ") != 1 for line in merges):
        raise BadTokenizer(f"tokenizer {path} is no file of byte-pair merges: two symbols a line are wanted")
    return merges


def _byte_symbols() -> dict[int, str]:
    """The character that stands for each byte in a merges file, in CLIP's order (`bytes_to_unicode` of GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


@lru_cache(1)
def _word_pattern() -> re.Pattern[str]:
    r"""CLIP's `'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+` for Python's `re`, which has no \p."""
    letters, numbers = ("".join(_ranges(kind)) for kind in "LN")
    return re.compile(rf"'[sſ]|'t|'re|'ve|'m|'ll|'d|[{letters}]+|[{numbers}]|[^\s{letters}{numbers}]+")


def _ranges(kind: str) -> Iterator[str]:
    """Ranges of characters whose Unicode category begins with `kind`, for a character class."""
    begun = None
    for code in range(sys.maxunicode + 2):
        inside = code <= sys.maxunicode and unicodedata.category(chr(code))[0] == kind
        if inside and begun is None:
            begun = code
        elif not inside and begun is not None:
            yield f"\\U{begun:08x}-\\U{code - 1:08x}"
            begun = None
