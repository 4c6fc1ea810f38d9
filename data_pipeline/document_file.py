"""Documents on disk between the phases of prepare: Arrow IPC, compressed, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray

from data_pipeline.documents import Document, utf8_length

_BATCH_BYTES = 1 << 23
_SCHEMA = pyarrow.schema([("text", pyarrow.large_utf8()), ("source", pyarrow.large_utf8())])


class DocumentWriter:
    """Writes one file; documents come back in the order in which they were appended."""

    def __init__(self, path: Path) -> None:
        options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
        self.documents = 0
        self.bytes = 0
        self._file = open(path, "wb")  # noqa: SIM115  (closed by __exit__)
        self._writer = pyarrow.ipc.new_stream(self._file, _SCHEMA, options=options)
        self._texts: list[str] = []
        self._sources: list[str] = []
        self._pending = 0

    def append(self, text: str, source: str) -> None:
        """Adds a document."""
        self._texts.append(text)
        self._sources.append(source)
        size = utf8_length(text)
        self.documents += 1
        self.bytes += size
        self._pending += size
        if self._pending >= _BATCH_BYTES:
            self._flush()

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._flush()
            self._writer.close()
        finally:
            self._file.close()

    def _flush(self) -> None:
        if self._texts:
            columns = [
                pyarrow.array(self._texts, pyarrow.large_utf8()),
                pyarrow.array(self._sources, pyarrow.large_utf8()),
            ]
            self._writer.write_batch(pyarrow.record_batch(columns, schema=_SCHEMA))
        self._texts, self._sources, self._pending = [], [], 0


@dataclass
class DocumentBatch:
    """Consecutive documents of a file. first: the number of the first of them in the file."""

    first: int
    _columns: Any

    def __len__(self) -> int:
        return int(self._columns.num_rows)

    @property
    def texts(self) -> list[str]:
        """The texts."""
        texts: list[str] = self._columns.column(0).to_pylist()
        return texts

    @property
    def sources(self) -> list[str]:
        """Where each came from."""
        sources: list[str] = self._columns.column(1).to_pylist()
        return sources

    def utf8(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The texts' bytes end to end, without a copy, and where each begins, [n + 1]."""
        _, offsets, content = self._columns.column(0).buffers()
        starts = np.frombuffer(offsets, dtype=np.int64)[: len(self) + 1]
        data = np.frombuffer(content, dtype=np.uint8) if content is not None else np.zeros(0, dtype=np.uint8)
        return data, starts


def read_batches(path: Path) -> Iterator[DocumentBatch]:
    """The file's batches of about 8 MiB of text, in order."""
    with pyarrow.OSFile(str(path), "rb") as file, pyarrow.ipc.open_stream(file) as reader:
        first = 0
        for columns in reader:
            yield DocumentBatch(first, columns)
            first += columns.num_rows


def read_documents(path: Path) -> Iterator[Document]:
    """The file's documents, in order."""
    for batch in read_batches(path):
        for text, source in zip(batch.texts, batch.sources, strict=True):
            yield Document(text, source)
