"""Files → documents, in a fixed order; what cannot be read is counted and named, never passed over in silence.

A text file is a document; so is a line of JSON lines and a row of parquet. `.gz` and `.zst` are decompressed.
"""

from __future__ import annotations

import fnmatch
import glob
import gzip
import json
import os
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import zstandard

from data_pipeline.config import CorpusConfig
from data_pipeline.errors import BadConfig, BadCorpus

_NAMED = 5
_CHUNK = 1 << 20


@dataclass
class Document:
    """source: where it came from, for messages (`path`, or `path:line`)."""

    text: str
    source: str


@dataclass
class Funnel:
    """What happened to a corpus's documents: how many were read, how many dropped and why."""

    files: int = 0
    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """For each reason, the sources of the first few."""

    def drop(self, reason: str, source: str) -> None:
        """Counts a document (or a file that cannot be read) as dropped."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        named = self.examples.setdefault(reason, [])
        if len(named) < _NAMED:
            named.append(source)

    def __str__(self) -> str:
        reasons = "; ".join(
            f"{count} {reason} ({', '.join(self.examples[reason][:2])}{', ...' if count > 2 else ''})"
            for reason, count in self.dropped.items()
        )
        counts = f"{self.files} files, {self.read} documents read, {self.kept} kept"
        return f"{counts}; dropped: {reasons}" if reasons else counts


def find_files(corpus: CorpusConfig) -> list[str]:
    """The files of the corpus's sources, sorted, each once. Raises BadCorpus if there are none."""
    found: set[str] = set()
    for source in corpus.sources:
        try:
            pattern = source.format(stdlib=sysconfig.get_path("stdlib"), site_packages=sysconfig.get_path("purelib"))
        except (KeyError, IndexError, ValueError) as error:
            raise BadConfig(
                f'corpus {corpus.name}: source "{source}": only {{stdlib}} and {{site_packages}} may stand in braces'
            ) from error
        if os.path.isdir(pattern):
            pattern = os.path.join(glob.escape(pattern), "**", "*")
        found.update(glob.glob(pattern, recursive=True))
    files = sorted(path for path in found if not os.path.isdir(path))
    files = [path for path in files if not any(fnmatch.fnmatchcase(path, pattern) for pattern in corpus.exclude)]
    if not files:
        raise BadCorpus(f"corpus {corpus.name}: no file matches {', '.join(corpus.sources)}")
    return files


def read_documents(corpus: CorpusConfig, funnel: Funnel) -> Iterator[Document]:
    """The corpus's documents. A file that cannot be opened and text that is not UTF-8 are dropped and counted.

    Raises BadCorpus, with the file's name, for a file that breaks off or is not what its name says.
    """
    for path in find_files(corpus):
        funnel.files += 1
        name = path
        for suffix in (".gz", ".zst"):
            name = name.removesuffix(suffix)
        if name.endswith(".parquet"):
            documents = _parquet(path, corpus.text_field)
        elif name.endswith((".jsonl", ".ndjson")):
            documents = _json_lines(path, corpus.text_field, funnel)
        else:
            documents = _text(path, funnel)
        for document in documents:
            funnel.read += 1
            yield document


def _text(path: str, funnel: Funnel) -> Iterator[Document]:
    text = _decoded(b"".join(_chunks(path, funnel)), path, funnel)
    if text:
        yield Document(text, path)


def _json_lines(path: str, text_field: str, funnel: Funnel) -> Iterator[Document]:
    for number, line in enumerate(_lines(path, funnel), start=1):
        source = f"{path}:{number}"
        text = _decoded(line, source, funnel)
        if text is None or not text.strip():
            continue
        try:
            value = json.loads(text)
        except ValueError:
            funnel.drop("broken JSON", source)
            continue
        content = value.get(text_field) if isinstance(value, dict) else None
        if not isinstance(content, str):
            funnel.drop(f'without a text field "{text_field}"', source)
        elif _is_utf8(content):
            yield Document(content, source)
        else:
            funnel.drop("invalid UTF-8", source)


def _parquet(path: str, text_field: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        if text_field not in file.schema_arrow.names:
            columns = ", ".join(file.schema_arrow.names)
            raise BadCorpus(f'{path} has no column "{text_field}" but {columns}: set text_field')
        row = 0
        for batch in file.iter_batches(columns=[text_field], batch_size=1024):
            for value in batch.column(0).to_pylist():
                row += 1
                if isinstance(value, str):
                    yield Document(value, f"{path}:{row}")
    except (pyarrow.ArrowException, OSError) as error:
        raise BadCorpus(f"{path} is no whole parquet file: {str(error).splitlines()[0]}") from error


def _lines(path: str, funnel: Funnel) -> Iterator[bytes]:
    pending: list[bytes] = []
    for chunk in _chunks(path, funnel):
        first, *others = chunk.split(b"\n")
        pending.append(first)
        if others:
            yield b"".join(pending)
            yield from others[:-1]
            pending = [others[-1]]
    yield b"".join(pending)


def _chunks(path: str, funnel: Funnel) -> Iterator[bytes]:
    """The file's bytes, decompressed. Nothing, and an entry in the funnel, if it cannot be opened."""
    try:
        file = open(path, "rb")  # noqa: SIM115  (closed below; only opening may fail softly)
    except OSError as error:
        funnel.drop("unreadable", f"{path}: {error.strerror}")
        return
    with file:
        try:
            if path.endswith(".gz"):
                with gzip.GzipFile(fileobj=file) as unzipped:
                    yield from iter(lambda: unzipped.read(_CHUNK), b"")
            elif path.endswith(".zst"):
                yield from _zstd(file)
            else:
                yield from iter(lambda: file.read(_CHUNK), b"")
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise BadCorpus(f"{path} is damaged: {error}") from error


def _zstd(file: BinaryIO) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    for chunk in iter(lambda: file.read(_CHUNK), b""):
        rest = chunk
        while rest:
            if decompressor.eof:  # another frame follows
                decompressor = zstandard.ZstdDecompressor().decompressobj()
            yield decompressor.decompress(rest)
            rest = decompressor.unused_data
    if not decompressor.eof:
        raise EOFError("the compressed data break off")


def _decoded(content: bytes, source: str, funnel: Funnel) -> str | None:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        funnel.drop("invalid UTF-8", source)
        return None


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return False
    return True
