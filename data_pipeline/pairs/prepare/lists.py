"""Lists of (path or URL, caption): parquet, CSV, JSON, JSON lines; cut into files of so many rows."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urljoin

import pyarrow
import pyarrow.parquet

from data_pipeline.errors import BadCorpus
from data_pipeline.pairs.shards import MAX_CAPTION_BYTES
from data_pipeline.sources import SourceFile, open_source
from data_pipeline.sources.decompression import Damaged, read_pieces
from data_pipeline.sources.json_lines import lines
from data_pipeline.sources.read import suffixes
from data_pipeline.sources.remote import SCHEMES
from data_pipeline.sources.text import printable, whole

_SCHEMA = pyarrow.schema(
    [("number", pyarrow.int64()), ("path", pyarrow.large_binary()), ("caption", pyarrow.large_binary())]
)
#: A whole JSON array is held in memory; longer ones have to be JSON lines.
_MAX_JSON = 1 << 29
_MAX_LINE = 1 << 22
_MAX_PATH = 1 << 16
_BATCH_ROWS = 1024
#: Objects of which one has to have the columns.
_FIRST_OBJECTS = 100

#: The values of the two columns, None where there is no text.
Values = tuple[Any, Any]


@dataclass(frozen=True)
class ListRow:
    """number: of the row in its list, from 1."""

    number: int
    path: str | None
    caption: str | None

    def resolved(self, list_path: str) -> str | None:
        """The absolute path or URL; None if the row has none, or one of a kind that is not known."""
        path = (self.path or "").strip()
        if path.startswith("file://"):
            path = path.removeprefix("file://")
        elif "://" in path:
            return path if path.partition("://")[0].lower() in SCHEMES else None
        if not path:
            return None
        return urljoin(list_path, path) if "://" in list_path else os.path.join(os.path.dirname(list_path), path)


def split_rows(
    folder: Path, file: SourceFile, path_field: str, caption_field: str, part_rows: int, keep_damaged: bool
) -> str | None:
    """Writes the list's rows into rows-00000.arrow and on; what is wrong with its end if it is damaged, else None.

    Raises BadCorpus if it cannot be read, has no rows or not both columns; or if it is damaged, unless `keep_damaged`.
    """
    source = printable(file.path)
    rows = _Rows(folder, part_rows)
    broken = None
    try:
        with open_source(file.path) as opened:
            for values in _values(opened, file.path, source, (path_field, caption_field)):
                rows.add(values)
    except OSError as error:
        raise BadCorpus(f"{source} cannot be read: {error.strerror or error}") from error
    except Damaged as error:
        if not keep_damaged:
            keep = "use the rows before the damage" if rows.count else "go on without it"
            raise BadCorpus(
                f"{source} is damaged: {error}; repair or exclude it, or set damaged_files: keep to {keep}"
            ) from error
        broken = str(error)
    rows.flush()
    if not rows.count and broken is None:
        raise BadCorpus(f"{source} has no rows")
    return broken


def read_list_rows(path: Path) -> Iterator[ListRow]:
    """The rows of one of the files that `split_rows` wrote."""
    with pyarrow.OSFile(str(path), "rb") as file, pyarrow.ipc.open_stream(file) as reader:
        for batch in reader:
            for row in batch.to_pylist():
                yield ListRow(row["number"], _text(row["path"]), _text(row["caption"]))


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "surrogateescape")


class _Rows:
    def __init__(self, folder: Path, part_rows: int) -> None:
        self._folder, self._part_rows = folder, part_rows
        self._rows: list[tuple[int, bytes | None, bytes | None]] = []
        self._files = 0
        self.count = 0

    def add(self, values: Values) -> None:
        self.count += 1
        path, caption = (_bytes(value) for value in values)
        if path is not None and len(path) > _MAX_PATH:
            path = None
        if caption is not None:
            caption = caption[: MAX_CAPTION_BYTES + 1]  # enough to be told as too long
        self._rows.append((self.count, path, caption))
        if len(self._rows) >= self._part_rows:
            self.flush()

    def flush(self) -> None:
        if not self._rows:
            return
        columns = [
            pyarrow.array(column, kind.type)
            for column, kind in zip(zip(*self._rows, strict=True), _SCHEMA, strict=True)
        ]
        path = self._folder / f"rows-{self._files:08d}.arrow"
        with open(path, "wb") as file, pyarrow.ipc.new_stream(file, _SCHEMA) as writer:
            writer.write_batch(pyarrow.record_batch(columns, schema=_SCHEMA))
        self._rows = []
        self._files += 1


def _bytes(value: Any) -> bytes | None:
    """A cell as bytes, whatever they are: whether they are UTF-8 is seen later, pair by pair. Numbers are no text."""
    if isinstance(value, str):
        try:
            return value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
            return value.encode("utf-8", "surrogatepass")
    return value if isinstance(value, bytes) else None


def _values(file: BinaryIO, path: str, source: str, fields: tuple[str, str]) -> Iterator[Values]:
    kind, compression = suffixes(path)
    if kind == ".parquet":
        if compression:
            raise BadCorpus(f"{source}: parquet is not read from front to back, so not inside {compression}: unpack it")
        yield from _parquet(file, source, fields)
        return
    pieces = read_pieces(file, source, compression)
    first = next(pieces, b"").removeprefix(codecs.BOM_UTF8)
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadCorpus(f"{source} is UTF-16: save it as UTF-8")
    pieces = itertools.chain([first] if first else [], pieces)
    if kind in (".csv", ".tsv"):
        yield from _csv(pieces, source, fields, "\t" if kind == ".tsv" else ",")
    elif kind == ".json" and first.lstrip().startswith(b"["):
        yield from _json_array(pieces, source, fields)
    else:
        yield from _json_lines(pieces, source, fields)


def _columns(there: Sequence[Any], fields: tuple[str, str], source: str) -> None:
    for key, name in zip(("path_field", "caption_field"), fields, strict=True):
        if name not in there:
            names = ", ".join(_shown(str(column)) for column in there) or "none"
            utf16 = " (is it UTF-16? save it as UTF-8)" if any("\0" in str(column) for column in there) else ""
            raise BadCorpus(f'{source} has no column "{name}"; it has {names}: set {key}{utf16}')


def _shown(name: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in name)


def _parquet(file: BinaryIO, source: str, fields: tuple[str, str]) -> Iterator[Values]:
    try:
        table = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        _columns(table.schema_arrow.names, fields, source)
        for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=list(dict.fromkeys(fields))):
            columns = [batch.column(batch.schema.get_field_index(name)).to_pylist() for name in fields]
            yield from zip(*columns, strict=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise Damaged(f"no whole parquet file: {str(error).splitlines()[0]}") from error
    except UnicodeDecodeError as error:
        raise Damaged("a text in it is no UTF-8") from error


class _Pieces(io.RawIOBase):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._left = self._left or next(self._pieces, b"")
        taken, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _csv(pieces: Iterator[bytes], source: str, fields: tuple[str, str], delimiter: str) -> Iterator[Values]:
    binary = io.BufferedReader(_Pieces(pieces), 1 << 16)
    text = io.TextIOWrapper(binary, encoding="utf-8", errors="surrogateescape", newline="")
    csv.field_size_limit(_MAX_LINE)  # of this process, in which nothing else reads CSV
    # Strict: a quotation mark without its second one would make one caption of all rows up to the next.
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    begun = 1
    try:
        header = next(reader, None)
        if header is None:
            raise BadCorpus(f"{source} is empty: its first line has to name the columns")
        _columns(header, fields, source)
        places = [header.index(name) for name in fields]
        begun = reader.line_num + 1
        for row in reader:
            begun = reader.line_num + 1
            if row:
                path, caption = (row[place] if place < len(row) else None for place in places)
                yield path, caption
    except csv.Error as error:
        raise Damaged(
            f"the row that begins in line {begun}: {error} (a quotation mark that is not closed, or one within that is "
            "not doubled?)"
        ) from error


def _json_array(pieces: Iterator[bytes], source: str, fields: tuple[str, str]) -> Iterator[Values]:
    content = whole(pieces, _MAX_JSON)
    if content is None:
        raise BadCorpus(f"{source} is an array of more than {_MAX_JSON >> 20} MiB: write it as JSON lines, .jsonl")
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Damaged(
            f"no JSON: {error}; of an array no row can be used before the damage: write it as JSON lines, .jsonl"
        ) from error
    yield from _objects(rows, source, fields)


def _json_lines(pieces: Iterator[bytes], source: str, fields: tuple[str, str]) -> Iterator[Values]:
    def rows() -> Iterator[Any]:
        for line in lines(pieces, _MAX_LINE):
            if line is None:
                yield None
            elif line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):
                    yield None

    yield from _objects(rows(), source, fields)


def _objects(rows: Iterable[Any], source: str, fields: tuple[str, str]) -> Iterator[Values]:
    """The first objects say which columns there are; a row that is none counts as one without path and caption."""
    left, known = iter(rows), False
    while some := list(itertools.islice(left, _FIRST_OBJECTS)):
        objects = [row for row in some if isinstance(row, dict)]
        if objects and not known:
            _columns(list(dict.fromkeys(itertools.chain(*objects))), fields, source)
            known = True
        for row in some:
            yield (row.get(fields[0]), row.get(fields[1])) if isinstance(row, dict) else (None, None)
    if not known:
        raise BadCorpus(f"{source} has no rows: no JSON objects with {fields[0]} and {fields[1]}")
