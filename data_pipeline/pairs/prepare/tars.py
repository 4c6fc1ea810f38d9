"""WebDataset tars of pairs, as img2dataset writes them. Read as a stream; nothing is written to disk by any name."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterator
from typing import Any

from data_pipeline.errors import BadCorpus
from data_pipeline.pairs.prepare.raw import NO_PICTURE, REPEATED, TOO_LARGE, RawPair, bounded, unfit
from data_pipeline.pairs.shards import MAX_CAPTION_BYTES
from data_pipeline.sources import SourceFile, open_source
from data_pipeline.sources.decompression import Damaged, PieceReader, read_pieces
from data_pipeline.sources.read import suffixes
from data_pipeline.sources.text import printable
from data_pipeline.sources.web_tars import Member, members

_PICTURES = ("jpg", "jpeg", "png", "webp")
_MAX_JSON = 1 << 20
_URL_CHARACTERS = 4096


def tar_pairs(file: SourceFile, key: str, *, caption_field: str, max_picture_bytes: int) -> Iterator[RawPair]:
    """The pairs of a tar, and its halves of pairs. Holds one sample at a time.

    A sample is what follows upon each other with the same name up to the first dot after the last slash. Its caption is
    the .txt, or that of the .json if there is no .txt. Raises Damaged, after the pairs before the damage; BadCorpus.
    """
    source = printable(file.path)
    try:
        opened = open_source(file.path)
    except OSError as error:
        raise BadCorpus(f"{source} cannot be read: {error.strerror}") from error
    with opened as archive:
        stream = PieceReader(read_pieces(archive, source, suffixes(file.path)[1]))
        sample = _Sample("")
        for member in members(stream):
            name, extension = _split(member.name)
            if name != sample.name:
                yield from sample.pairs(source, key, caption_field)
                sample = _Sample(name)
            sample.take(member, extension, stream, max_picture_bytes)
        yield from sample.pairs(source, key, caption_field)


class _Sample:
    """What one key has so far; of two members of one kind the first counts, the other is told as one too many."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.load: Callable[[], bytes] | None = None
        self.text: bytes | None = None
        self.json: dict[str, Any] = {}
        self.more = {"picture": 0, "caption": 0}

    def take(self, member: Member, extension: str, stream: PieceReader, limit: int) -> None:
        if extension in _PICTURES:
            if self.load is not None:
                self.more["picture"] += 1
                return
            if member.size > limit:
                self.load = unfit(TOO_LARGE)
                return
            content = _read(stream, member)

            def load() -> bytes:
                return bounded(content, limit)

            self.load = load
        elif extension == "txt":
            if self.text is not None:
                self.more["caption"] += 1
                return
            self.text = _read(stream, member, MAX_CAPTION_BYTES + 1)
        elif extension == "json" and not self.json and member.size <= _MAX_JSON:
            try:
                value = json.loads(_read(stream, member))
            except (ValueError, RecursionError):
                return
            self.json = value if isinstance(value, dict) else {}

    def pairs(self, source: str, key: str, caption_field: str) -> Iterator[RawPair]:
        caption = self.text.decode("utf-8", "surrogateescape") if self.text is not None else None
        if caption is None and isinstance(self.json.get(caption_field), str):
            caption = self.json[caption_field]
        if self.load is None and caption is None:
            return  # the metadata of something else
        url = self.json.get("url")
        facts = {"url": url} if isinstance(url, str) and len(url) <= _URL_CHARACTERS else {}
        name = printable(self.name)
        yield RawPair(
            f"{key}:{name}", f"{source}:{name}", caption, self.load or unfit(NO_PICTURE), near=True, facts=facts
        )
        for number in range(2, 2 + max(self.more.values())):
            place = f"{name} ({number})"
            yield RawPair(f"{key}:{place}", f"{source}:{place}", "", unfit(REPEATED), wrong=REPEATED)


def _read(stream: PieceReader, member: Member, limit: int | None = None) -> bytes:
    """The member's bytes, or the first `limit` of them. Raises Damaged."""
    size = member.size if limit is None else min(member.size, limit)
    content = stream.read(size)
    if len(content) < size:
        raise Damaged(f"the archive breaks off in {printable(member.name)}")
    return content


def _split(name: str) -> tuple[str, str]:
    folder, file = posixpath.split(name)
    stem, _, extension = file.partition(".")
    return posixpath.join(folder, stem), extension.lower()
