"""A file's bytes, decompressed piece by piece; finds where compressed data break off."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, Protocol

import zstandard

from data_pipeline.errors import EnvironmentFailure

#: Compressed bytes at a time.
_BLOCK = 1 << 17
_ZSTD_BLOCK = 1 << 9
#: Decompressed bytes at a time.
_PIECE = 1 << 20
_XZ_MEMORY = 1 << 29


class Damaged(Exception):
    """A file is not whole, or not what its name says. The message says what is wrong, not with which file."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /, max_length: int = -1) -> bytes: ...


class _Zlib:
    """zlib's decompressor in the form of bz2's and lzma's."""

    def __init__(self, wbits: int) -> None:
        self._inner = zlib.decompressobj(wbits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, /, max_length: int = -1) -> bytes:
        tail = self._inner.unconsumed_tail
        piece = self._inner.decompress(tail + data if tail else data, max_length)
        self.needs_input = not self._inner.unconsumed_tail and len(piece) < max_length
        return piece


class _Zstd:
    """zstandard's decompressor, fed little at a time: it has no bound for what it gives (up to 32 KiB for a byte)."""

    def __init__(self) -> None:
        # zstd --long=31, with which large collections are often packed, needs a window of 2 GiB.
        self._inner = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        self._data, self._position = b"", 0

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return self._position >= len(self._data)

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data + self._data[self._position :]

    def decompress(self, data: bytes, /, max_length: int = -1) -> bytes:
        if data:
            self._data, self._position = data, 0
        block = self._data[self._position : self._position + _ZSTD_BLOCK]
        self._position += len(block)
        return self._inner.decompress(block)


_KINDS: dict[str, Callable[[], _Decompressor]] = {
    ".gz": lambda: _Zlib(16 + zlib.MAX_WBITS),
    ".dz": lambda: _Zlib(16 + zlib.MAX_WBITS),  # dictzip is gzip with a table of contents
    ".zst": _Zstd,
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY),
    "zlib": lambda: _Zlib(zlib.MAX_WBITS),
    "deflate": lambda: _Zlib(-zlib.MAX_WBITS),
}
#: Suffixes of compressed files.
COMPRESSIONS = tuple(kind for kind in _KINDS if kind.startswith("."))


def read_pieces(file: BinaryIO, path: str, compression: str = "") -> Iterator[bytes]:
    """The file's bytes in pieces of bounded size, none of them empty. compression: a suffix of COMPRESSIONS, or "".

    Raises Damaged, after all the pieces before the damage; EnvironmentFailure if the file cannot be read on.
    """

    def blocks() -> Iterator[bytes]:
        try:
            while block := file.read(_BLOCK):
                yield block
        except OSError as error:
            raise EnvironmentFailure(f"{path} cannot be read on: {error.strerror or error}") from error

    return decompressed(blocks(), compression) if compression else blocks()


def decompressed(blocks: Iterable[bytes], kind: str) -> Iterator[bytes]:
    """What is in the compressed blocks, in pieces of bounded size, none of them empty. Raises Damaged."""
    new = _KINDS[kind]
    decompressor: Any = None
    for block in blocks:
        while block:
            if decompressor is None or decompressor.eof:
                if decompressor is not None:
                    block = block.lstrip(b"\0")  # padding, of tapes
                    if not block:
                        break
                decompressor = new()
            yield from _fed(decompressor, block)
            block = decompressor.unused_data if decompressor.eof else b""
    if decompressor is not None and not decompressor.eof:
        raise Damaged("the compressed data break off")


def _fed(decompressor: _Decompressor, block: bytes) -> Iterator[bytes]:
    while True:
        try:
            piece = decompressor.decompress(block, _PIECE)
        except (zlib.error, OSError, EOFError, lzma.LZMAError, zstandard.ZstdError) as error:
            raise Damaged(f"the compressed data are broken: {error}") from error
        if piece:
            yield piece
        if decompressor.eof or decompressor.needs_input:
            return
        block = b""


class PieceReader:
    """Pieces of bytes as a stream."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._piece = memoryview(b"")
        self._position = 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end alone."""
        parts = []
        missing = size
        while missing:
            if not self._piece:
                self._piece = memoryview(next(self._pieces, b""))
                if not self._piece:
                    break
            parts.append(self._piece[:missing])
            self._piece = self._piece[missing:]
            missing -= len(parts[-1])
        self._position += size - missing
        return b"".join(parts)

    def tell(self) -> int:
        """Bytes read so far."""
        return self._position

    def skip(self, size: int) -> None:
        """Passes over `size` bytes, or over all if there are fewer."""
        while size and (data := self.read(min(size, _PIECE))):
            size -= len(data)
