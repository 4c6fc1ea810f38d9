"""WebDataset tars: a document a sample. Read as a stream; nothing is written to disk and nothing unpickled."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from data_pipeline.documents import Document, Tally
from data_pipeline.sources.decompression import Damaged, PieceReader
from data_pipeline.sources.json_lines import json_document
from data_pipeline.sources.text import TOO_LONG, ReadingOptions, text_document

OTHER_MEMBER = "read: a tar member that is no text"

_BLOCK = tarfile.BLOCKSIZE
_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
#: Bytes that are read of an extension.
_MAX_EXTENSION = 1 << 20


def web_tar(pieces: Iterable[bytes], source: str, tally: Tally, options: ReadingOptions) -> Iterator[Document]:
    """The `.txt` of each sample, or the text field of its `.json` if it has no `.txt`; other members are counted.

    A sample is what follows upon each other with the same name up to the first dot after the last slash. Raises
    Damaged.
    """
    stream = PieceReader(pieces)
    key, json, has_text = "", list[tuple[bytes, str]](), False

    def json_of_sample() -> Iterator[Document]:
        for content, place in json:
            if has_text:
                tally.drop(OTHER_MEMBER, place)
            else:
                yield from json_document(content, place, tally, options)

    for member in members(stream):
        place = f"{source}:{member.name}"
        this_key, extension = _split(member.name)
        if this_key != key or (extension == "json" and json):
            yield from json_of_sample()
            key, json, has_text = this_key, [], False
        if extension not in ("txt", "json"):
            tally.drop(OTHER_MEMBER, place)
        elif member.size > options.max_document_bytes:
            tally.drop(TOO_LONG, place)
        else:
            content = stream.read(member.size)
            if len(content) < member.size:
                raise Damaged(f"the archive breaks off in {member.name}")
            if extension == "txt":
                has_text = True
                yield from text_document(content, place, tally)
            else:
                json = [(content, place)]
    yield from json_of_sample()


@dataclass
class Member:
    """A file in a tar. size: bytes."""

    name: str
    size: int


def members(stream: PieceReader) -> Iterator[Member]:
    """The archive's files. Between two of them the caller may read from the stream, up to the file's size.

    The standard library's reader takes a damaged header, and an archive that ends between two members, for the end.
    This one raises Damaged. Archives may follow upon each other.
    """
    extended: dict[str, str] = {}
    ended = False
    while block := stream.read(_BLOCK):
        if not any(block):
            ended = True
            continue
        start = stream.tell() - len(block)
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
            size = header.size if header.type in _EXTENSIONS else int(extended.get("size", header.size))
        except (tarfile.HeaderError, ValueError) as error:
            raise Damaged(f"no tar header at byte {start} ({error})") from error
        if size < 0 or header.type == tarfile.GNUTYPE_SPARSE:
            raise Damaged(f"a member of an unknown kind at byte {start}")
        if not (header.isreg() or header.type in _EXTENSIONS or header.type not in tarfile.SUPPORTED_TYPES):
            size = 0  # links and folders have no content, whatever they say
        ended = False
        end = stream.tell() + size
        if header.type in _EXTENSIONS:
            extended.update(_extension(header.type, stream.read(min(size, _MAX_EXTENSION))))
        else:
            name, extended = extended.get("path", header.name), {}
            if header.isreg():
                yield Member(name, size)
        stream.skip(end + -size % _BLOCK - stream.tell())
        if stream.tell() < end:
            raise Damaged(f"the archive breaks off in the member at byte {start}")
    if not ended:
        raise Damaged("the archive breaks off: its end mark is missing")


def _extension(kind: bytes, content: bytes) -> dict[str, str]:
    """What a header before a member's own says of it."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": content.rstrip(b"\0").decode("utf-8", "replace")}
    return dict(_pax(content)) if kind in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE) else {}


def _split(name: str) -> tuple[str, str]:
    """Key and extension, as WebDataset has them."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def _pax(content: bytes) -> Iterator[tuple[str, str]]:
    """The records `length key=value` (POSIX.1-2001)."""
    while content:
        length, _, _ = content.partition(b" ")
        try:
            size = int(length)
        except ValueError as error:
            raise Damaged("a broken extended header") from error
        record = content[len(length) + 1 : max(size, 1) - 1]
        content = content[max(size, 1) :]
        key, _, value = record.partition(b"=")
        yield key.decode("utf-8", "replace"), value.decode("utf-8", "replace")
