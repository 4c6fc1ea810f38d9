"""Tokens of documents → one long row of tokens → samples of fixed length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import DTypeLike, NDArray


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest of uint16 and uint32 that holds every token id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class Packer:
    """Packs a corpus, cut every `sequence_length` tokens; each document is followed by the end-of-document token.

    Sample i holds tokens i * s ... i * s + s of the corpus: s + 1 tokens, the last of which is the first of sample
    i + 1, so that every token but the corpus's first is predicted exactly once.
    """

    def __init__(self, sequence_length: int, eod_id: int, dtype: DTypeLike, rows: int) -> None:
        self.sequence_length = sequence_length
        self.tokens = 0
        self.dropped = 0  # tokens of the tail that fill no sample; known at the end
        self._eod = np.array([eod_id], dtype=dtype)
        self._dtype = np.dtype(dtype)
        self._block = rows * sequence_length

    def pack(self, documents: Iterable[NDArray[np.int32]]) -> Iterator[NDArray[np.unsignedinteger]]:
        """Yields blocks of `rows` samples, [rows, s + 1]; the last block may have fewer rows."""
        return self.pack_tokens(part for document in documents for part in (document, self._eod))

    def pack_tokens(self, tokens: Iterable[NDArray[np.integer]]) -> Iterator[NDArray[np.unsignedinteger]]:
        """The same from runs of tokens of any length, in which each document has its end-of-document token already."""
        pending: list[NDArray[np.unsignedinteger]] = []
        count = 0
        for run in tokens:
            pending.append(run.astype(self._dtype, copy=False))
            count += len(run)
            self.tokens += len(run)
            if count <= self._block:
                continue
            row = np.concatenate(pending)
            while len(row) > self._block:
                yield self._samples(row[: self._block + 1])
                row = row[self._block :]
            pending, count = [row], len(row)
        row = np.concatenate(pending) if pending else np.zeros(0, dtype=self._dtype)
        whole = max(0, len(row) - 1) // self.sequence_length * self.sequence_length
        if whole:
            yield self._samples(row[: whole + 1])
        self.dropped = len(row) - whole - (1 if whole or self.tokens > len(row) else 0)

    def _samples(self, row: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
        s = self.sequence_length
        return np.concatenate([row[:-1].reshape(-1, s), row[s::s, None]], axis=1)
