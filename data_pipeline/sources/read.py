"""Which reader a file gets, and what becomes of a file that cannot be read or is damaged."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal
from urllib.parse import urlsplit

from data_pipeline.documents import Document, Tally
from data_pipeline.errors import BadCorpus
from data_pipeline.sources.decompression import COMPRESSIONS, Damaged, read_pieces
from data_pipeline.sources.files import SourceFile, open_source
from data_pipeline.sources.json_lines import json_lines
from data_pipeline.sources.parquet import parquet
from data_pipeline.sources.text import EMPTY, ReadingOptions, html_file, printable, text_file
from data_pipeline.sources.warc import warc
from data_pipeline.sources.web_tars import web_tar

UNREADABLE = "read: unreadable"
NOT_TEXT = "read: not text"
DAMAGED = "read: the file is damaged from here on"

Reader = Callable[[Iterable[bytes], str, Tally, ReadingOptions], Iterator[Document]]

_READERS: dict[str, Reader] = {
    ".html": html_file,
    ".htm": html_file,
    ".xhtml": html_file,
    ".json": json_lines,  # as C4 and others name their JSON lines
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".tar": web_tar,
    ".warc": warc,
    ".wet": warc,
}
#: What is never read. Of everything else, what is no UTF-8 is dropped once it is read.
_NOT_TEXT = frozenset(
    f".{suffix}"
    for line in (
        "apng avif bmp eot eps flac gif ico jpeg jpg mid mp3 mp4 mpeg oga ogg ogv otf pcf pfb png psd svg svgz tif",
        "tiff ttf wav webm webp woff woff2 xcf css docx dvi epub js map mjs odp ods odt pdf ppt pptx ps xls xlsx",
        "7z apk cab class cpio deb dll dylib exe iso jar lz lz4 lzma lzo o obj pyc pyd pyo rar rpm so tbz2 tgz txz",
        "wasm whl z zip arrow doctree feather gmo h5 hdf5 inv mo npy npz pickle pkl pt pth safetensors sqlite",
    )
    for suffix in line.split()
)


def read_documents(
    files: Iterable[SourceFile],
    tally: Tally,
    *,
    text_field: str = "text",
    damaged_files: Literal["stop", "keep"] = "stop",
    max_document_bytes: int = 64 << 20,
) -> Iterator[Document]:
    """The documents of the files, in order; the tally counts the files, and what of them is dropped and why.

    damaged_files: "stop" raises BadCorpus for a file that breaks off or is not what its name says; "keep" uses the
    documents before the damage. max_document_bytes: longer ones are dropped, and no more is held in memory than this,
    a reader's buffers and, of parquet, a row. Raises EnvironmentFailure if a disk or a server gives out.
    """
    options = ReadingOptions(text_field, max_document_bytes)
    for file in files:
        tally.files += 1
        source = printable(file.path)
        try:
            yield from _documents(file.path, source, tally, options)
        except Damaged as error:
            if damaged_files == "stop":
                raise BadCorpus(
                    f"{source} is damaged: {error}; repair or exclude it, or set damaged_files: keep to use the "
                    "documents before the damage"
                ) from error
            tally.drop(DAMAGED, f"{source}: {error}")


def _documents(path: str, source: str, tally: Tally, options: ReadingOptions) -> Iterator[Document]:
    suffix, compression = suffixes(path)
    if suffix in _NOT_TEXT:
        tally.drop(NOT_TEXT, source)
        return
    if suffix == ".parquet" and compression:
        raise BadCorpus(
            f"{source}: parquet is not read from front to back, so not inside {compression} either: unpack it"
        )
    try:
        file = open_source(path)
    except OSError as error:
        tally.drop(UNREADABLE, f"{source}: {error.strerror}")
        return
    with file:
        if suffix == ".parquet":
            yield from parquet(file, source, tally, options)
            return
        pieces = read_pieces(file, source, compression)
        first = next(pieces, b"")
        if first:
            yield from _READERS.get(suffix, text_file)(itertools.chain([first], pieces), source, tally, options)
        else:
            tally.drop(EMPTY, source)


def suffixes(path: str) -> tuple[str, str]:
    """What a file is and how it is compressed, as suffixes in lower case: `.jsonl` and `.gz`, say; "" for none."""
    name = (urlsplit(path).path if path.startswith(("http://", "https://")) else path).rpartition("/")[2].lower()
    compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    stem, dot, last = name.removesuffix(compression).rpartition(".")
    return (dot + last if stem else ""), compression
