"""Checked pairs on disk between the phases of prepare: the pictures end to end, and a table of the rest.

pictures.bin   the bytes of every picture
pairs.arrow    for each: key, source, caption, extension, facts (JSON), offset and size in pictures.bin
keys.npy       uint64 [pairs, 2]: BLAKE2 hash of the picture's file, as it was found
hashes.npy     uint64 [pairs]: perceptual hash
colours.npy    uint8 [pairs, 48]: the picture in 4 x 4 pixels of colour
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray

from data_pipeline.pairs.prepare.hashing import COLOURS, look
from data_pipeline.pairs.prepare.pictures import Pixels

PICTURES, TABLE = "pictures.bin", "pairs.arrow"
KEYS, HASHES, THUMBS = "keys.npy", "hashes.npy", "colours.npy"
_BATCH_PAIRS = 1024
_TEXTS = ("key", "source", "caption", "extension", "facts")
_SCHEMA = pyarrow.schema(
    [*((name, pyarrow.large_utf8()) for name in _TEXTS), ("offset", pyarrow.int64()), ("size", pyarrow.int64())]
)


@dataclass(frozen=True)
class StoredPair:
    """A row of the table. offset, size: of its bytes in pictures.bin."""

    key: str
    source: str
    caption: str
    extension: str
    facts: dict[str, Any]
    offset: int
    size: int


class PairFileWriter:
    """Writes one part into a folder; pairs come back in the order in which they were appended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pictures = open(folder / PICTURES, "wb")  # noqa: SIM115  (closed by __exit__)
        self._table = open(folder / TABLE, "wb")  # noqa: SIM115
        options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
        self._writer = pyarrow.ipc.new_stream(self._table, _SCHEMA, options=options)
        self._rows: list[tuple[Any, ...]] = []
        self._offset = 0
        self._keys: list[bytes] = []
        self._hashes: list[int] = []
        self._colours: list[NDArray[np.uint8]] = []

    def append(
        self,
        *,
        key: str,
        source: str,
        caption: str,
        extension: str,
        facts: dict[str, Any],
        picture: bytes,
        found: bytes,
        pixels: Pixels,
    ) -> None:
        """Adds a pair. picture: the bytes that are kept; found: those that were found, with these pixels."""
        self._pictures.write(picture)
        written = json.dumps(facts, ensure_ascii=False, sort_keys=True)
        self._rows.append((key, source, caption, extension, written, self._offset, len(picture)))
        self._offset += len(picture)
        self._keys.append(hashlib.blake2b(found, digest_size=16).digest())
        its_hash, its_colours = look(pixels)
        self._hashes.append(its_hash)
        self._colours.append(its_colours)
        if len(self._rows) >= _BATCH_PAIRS:
            self._flush()

    def __enter__(self) -> PairFileWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
                self._writer.close()
                keys = np.frombuffer(b"".join(self._keys), dtype=">u8").astype(np.uint64).reshape(-1, 2)
                np.save(self._folder / KEYS, keys)
                np.save(self._folder / HASHES, np.array(self._hashes, dtype=np.uint64))
                np.save(self._folder / THUMBS, np.array(self._colours, dtype=np.uint8).reshape(-1, COLOURS))
        finally:
            self._pictures.close()
            self._table.close()

    def _flush(self) -> None:
        if self._rows:
            columns = [
                pyarrow.array(values, kind.type)
                for values, kind in zip(zip(*self._rows, strict=True), _SCHEMA, strict=True)
            ]
            self._writer.write_batch(pyarrow.record_batch(columns, schema=_SCHEMA))
        self._rows = []


def read_pairs(part: Path) -> Iterator[tuple[int, StoredPair]]:
    """The part's pairs with their numbers, in order, without their pictures."""
    number = 0
    with pyarrow.OSFile(str(part / TABLE), "rb") as file, pyarrow.ipc.open_stream(file) as reader:
        for batch in reader:
            for row in batch.to_pylist():
                facts = json.loads(row.pop("facts"))
                yield number, StoredPair(**row, facts=facts)
                number += 1


def read_captions(part: Path, chosen: NDArray[np.bool_]) -> Iterator[tuple[str, str]]:
    """(key, caption) of the chosen pairs, in order."""
    for number, pair in read_pairs(part):
        if chosen[number]:
            yield pair.key, pair.caption


def read_pictures(part: Path, pairs: Sequence[StoredPair]) -> Iterator[bytes]:
    """The bytes of these pairs' pictures."""
    with open(part / PICTURES, "rb") as file:
        for pair in pairs:
            file.seek(pair.offset)
            yield file.read(pair.size)
