"""Parquet: a document a row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from data_pipeline.documents import Document, Tally
from data_pipeline.errors import BadCorpus
from data_pipeline.sources.decompression import Damaged
from data_pipeline.sources.json_lines import without_field
from data_pipeline.sources.text import TOO_LONG, ReadingOptions, text_document

_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 1024


def parquet(file: BinaryIO, source: str, tally: Tally, options: ReadingOptions) -> Iterator[Document]:
    """A document for each row with a text. Holds the texts of some rows at a time, of about 8 MiB together.

    Raises BadCorpus if there is no such column or if it is none of texts; Damaged for what is no whole file.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        # Without these two a whole column of a row group, which may be gigabytes, is read at once.
        table = pyarrow.parquet.ParquetFile(
            file, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
        )
        schema = table.schema_arrow
        if options.text_field not in schema.names:
            columns = ", ".join(schema.names)
            raise BadCorpus(f'{source} has no column "{options.text_field}" but {columns}: set text_field')
        kind = schema.field(options.text_field).type
        if not _is_text(kind):
            raise BadCorpus(f'{source}: the column "{options.text_field}" holds {kind}, not texts: set text_field')
        row = 0
        for values in _batches(table, options.text_field):
            for value in values:
                row += 1
                place = f"{source}:{row}"
                if value is None:
                    tally.drop(without_field(options), place)
                elif len(value) > options.max_document_bytes:
                    tally.drop(TOO_LONG, place)
                else:
                    yield from text_document(value, place, tally)
    except (pyarrow.ArrowException, OSError) as error:
        raise Damaged(f"no whole parquet file: {str(error).splitlines()[0]}") from error


def _batches(table: Any, column: str) -> Iterator[list[bytes | None]]:
    """The column's values as bytes: whether they are UTF-8 is seen value by value."""
    import pyarrow

    for number in range(table.num_row_groups):
        group = table.metadata.row_group(number)
        chunks = [group.column(index) for index in range(group.num_columns)]
        size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.num_rows // max(1, size)))
        for batch in table.iter_batches(batch_size=rows, row_groups=[number], columns=[column]):
            values = batch.column(0)
            if pyarrow.types.is_dictionary(values.type):
                values = values.dictionary_decode()
            yield values.cast(pyarrow.large_binary()).to_pylist()


def _is_text(kind: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    names = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    return any(kind == getattr(pyarrow, name)() for name in names)
