"""A SentencePiece tokenizer that is lossless on any text.

SentencePiece writes a space as U+2581, and so cannot tell the two apart when it decodes. Here U+2581 is cut out before
encoding and written as its three UTF-8 byte tokens; decoding joins the bytes that each token stands for. Hence
`decode(encode(text)) == text`, and `token_bytes[encode(text)].sum() == len(text.encode())`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from data_pipeline.errors import BadTokenizer

SPACE_MARK = "\u2581"
#: Longer texts are cut after a line end before encoding, for bounded memory and to use all threads on one document.
_SEGMENT_CHARACTERS = 1 << 18
_SEGMENT = re.compile(rf"(?s:.{{1,{_SEGMENT_CHARACTERS}}})(?<=\n)|(?s:.{{1,{_SEGMENT_CHARACTERS}}})")


class Tokenizer:
    """A SentencePiece model file, checked at start to be one that loses nothing.

    Raises BadTokenizer if the file is missing, is no SentencePiece model, or would change text.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            serialized = self.path.read_bytes()
        except OSError as error:
            raise BadTokenizer(f"tokenizer {path} cannot be read: {error.strerror}") from error
        self.sha256 = hashlib.sha256(serialized).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(serialized)
        except RuntimeError as error:
            raise BadTokenizer(f"tokenizer {path} is no SentencePiece model") from error
        self.vocab_size: int = self._processor.get_piece_size()
        self.eod_id: int = self._processor.eos_id()
        self._bytes_of = [self._bytes(i) for i in range(self.vocab_size)]
        #: UTF-8 bytes that each token stands for, int64 [vocab_size]; 0 for the end of a document and other controls
        self.token_bytes: NDArray[np.int64] = np.array([len(b) for b in self._bytes_of], dtype=np.int64)
        mark = [self._processor.piece_to_id(f"<0x{b:02X}>") for b in SPACE_MARK.encode()]
        self._space_mark_ids = np.array(mark, dtype=np.int32)
        self._check()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without an end-of-document token. Raises BadTokenizer for a lone surrogate."""
        return self.encode_batch([text], threads=1)[0].tolist()

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[NDArray[np.int32]]:
        """Token ids of each text, int32 [tokens of the text]; the same for any number of threads."""
        segments: list[str] = []
        plan: list[list[int]] = []  # for each text: numbers of its segments, -1 for a U+2581
        for text in texts:
            parts = []
            for segment in _segments(text):
                parts.append(-1 if segment == SPACE_MARK else len(segments))
                if segment != SPACE_MARK:
                    segments.append(segment)
            plan.append(parts)
        try:
            utf8 = [segment.encode() for segment in segments]
        except UnicodeEncodeError as error:
            raise BadTokenizer("the text has a lone surrogate, which UTF-8 cannot hold: drop or replace it") from error
        encoded = self._processor.encode(utf8, return_type="numpy", num_threads=threads) if utf8 else []
        nothing = np.zeros(0, dtype=np.int32)
        return [
            np.concatenate([nothing, *(encoded[n] if n >= 0 else self._space_mark_ids for n in parts)])
            for parts in plan
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the tokens; bytes that are not UTF-8 (a model may sample such) become U+FFFD."""
        return b"".join(self._bytes_of[i] for i in ids).decode("utf-8", errors="replace")

    def _bytes(self, token: int) -> bytes:
        processor = self._processor
        if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
            return b""
        piece: str = processor.id_to_piece(token)
        if processor.is_byte(token):
            return bytes([int(piece[1:-1], 16)])
        return piece.replace(SPACE_MARK, " ").encode()

    def _check(self) -> None:
        if self.eod_id < 0:
            raise BadTokenizer(f"tokenizer {self.path} has no end-of-sentence piece to end documents with")
        if any(self._processor.is_unknown(i) for i in self._space_mark_ids.tolist()):
            raise BadTokenizer(f"tokenizer {self.path} has no byte fallback, so it loses text: train one with it")
        probe = " a  b\t\n\n \u00a0e\u0301ﬁ\u3000①\r\n "
        if self.decode(self.encode(probe)) != probe:
            raise BadTokenizer(
                f"tokenizer {self.path} changes text: it needs the identity normalisation, no dummy prefix and "
                "remove_extra_whitespaces=false"
            )


def _segments(text: str) -> Iterator[str]:
    """Cuts out every U+2581, and cuts the rest into encodable lengths."""
    if SPACE_MARK not in text and len(text) <= _SEGMENT_CHARACTERS:
        if text:
            yield text
        return
    for part in re.split(f"({SPACE_MARK})", text):
        yield from _SEGMENT.findall(part)
