"""What a corpus's sources are made of: pictures with captions beside them, lists, tars."""

from __future__ import annotations

import fnmatch
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_pipeline.errors import BadCorpus
from data_pipeline.pairs.prepare.lists import read_list_rows
from data_pipeline.pairs.recipe import PairCorpusConfig, PairPrepareConfig
from data_pipeline.sources import SourceFile, find_files
from data_pipeline.sources.read import suffixes
from data_pipeline.sources.text import printable

LISTS = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".ndjson")
#: What may be pictures. Those that are none of JPEG, PNG and WebP inside are dropped and counted.
PICTURES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".heic",
    ".jxl",
)


@dataclass(frozen=True)
class PictureFile:
    """caption: the file beside the picture, if there is one."""

    picture: SourceFile
    caption: SourceFile | None


@dataclass
class Found:
    """A corpus's files, each kind sorted by path. base: the folder that keys are relative to."""

    base: str = ""
    pictures: list[PictureFile] = field(default_factory=list)
    lists: list[SourceFile] = field(default_factory=list)
    tars: list[SourceFile] = field(default_factory=list)
    lonely: list[SourceFile] = field(default_factory=list)
    """Captions without a picture beside them."""
    ignored: int = 0
    """Files that are none of this."""


def find(config: PairPrepareConfig, corpus: PairCorpusConfig) -> Found:
    """The files of a corpus; none that lies in the output. Raises BadConfig, BadCorpus, EnvironmentFailure."""
    own = os.path.realpath(config.output) + os.sep
    files = []
    for file in find_files(corpus.sources, corpus.exclude, corpus.name):
        if "://" in file.path:
            files.append(file)
        elif not os.path.realpath(file.path).startswith(own):
            files.append(replace(file, path=os.path.abspath(file.path)))
    if not files:
        raise BadCorpus(f"corpus {corpus.name}: all that its sources name lies in the output folder {config.output}")
    found = _sorted_by_kind(files, captions=corpus.caption == "file")
    if corpus.caption == "folder":  # a tree of classes often has a file about them, which is no list of pairs
        found.ignored += len(found.lists)
        found.lists = [file for file in found.lists if _named(file.path, corpus.sources)]
        found.ignored -= len(found.lists)
    if not (found.pictures or found.lists or found.tars or found.lonely):
        raise BadCorpus(
            f"corpus {corpus.name}: none of the {len(files)} files of its sources is a picture, a list "
            f"({', '.join(LISTS)}) or a .tar, such as {printable(files[0].path)}"
        )
    return found


def groups(files: Sequence[PictureFile], part_bytes: int, most: int) -> Iterator[list[PictureFile]]:
    """Neighbouring pictures together, until they make a part of so many bytes, or of `most` pictures."""
    group: list[PictureFile] = []
    size = 0
    for file in files:
        if group and (size + file.picture.size > part_bytes or len(group) == most):
            yield group
            group, size = [], 0
        group.append(file)
        size += file.picture.size
    if group:
        yield group


def without_listed(pictures: Sequence[PictureFile], lists: Sequence[tuple[SourceFile, Path]]) -> list[PictureFile]:
    """The pictures but those that have no caption beside them, as a list has it. lists: with the rows' folders."""
    bare = {file.picture.path for file in pictures if file.caption is None}
    listed = set()
    for file, folder in lists if bare else ():
        for rows in folder.glob("rows-*.arrow"):
            for row in read_list_rows(rows):
                path = row.resolved(file.path)
                path = path if path is None or "://" in path else os.path.normpath(path)
                if path in bare:
                    listed.add(path)
    return [file for file in pictures if file.picture.path not in listed]


def key_of(path: str, base: str) -> str:
    """A file's name below the base, with slashes."""
    return path[len(base) :].lstrip("/") if path.startswith(base) else path


def _sorted_by_kind(files: Sequence[SourceFile], captions: bool) -> Found:
    local = [os.path.dirname(file.path) for file in files if "://" not in file.path]
    found = Found(base=os.path.commonpath(local) if len(local) == len(files) else "")
    kinds = [suffixes(file.path)[0] for file in files]
    beside = {_stem(f.path): f for f, kind in zip(files, kinds, strict=True) if kind == ".txt" and captions}
    # img2dataset writes KEY.json beside a picture, NNNNN.parquet and NNNNN_stats.json beside a tar: they are no lists.
    owners = {_stem(f.path) for f, kind in zip(files, kinds, strict=True) if kind in (*PICTURES, ".tar")}
    used = set()
    for file, kind in zip(files, kinds, strict=True):
        stem = _stem(file.path)
        if kind in PICTURES:
            found.pictures.append(PictureFile(file, beside.get(stem)))
            used.add(stem)
        elif kind == ".tar":
            found.tars.append(file)
        elif kind in LISTS and stem not in owners and stem.removesuffix("_stats") not in owners:
            found.lists.append(file)
        elif kind != ".txt":
            found.ignored += 1
    found.lonely = [file for stem, file in beside.items() if stem not in used]
    return found


def _named(path: str, sources: Sequence[str]) -> bool:
    """Whether a source is this list, or a pattern for lists; and not only a folder in which it lies."""
    patterns = [source.removeprefix("file://") for source in sources if suffixes(source)[0] in LISTS]
    patterns = [pattern if "://" in pattern else os.path.abspath(pattern) for pattern in patterns]
    return any(path == pattern or fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _stem(path: str) -> str:
    """The path without what follows the last dot of its name."""
    folder, name = posixpath.split(path)
    compression = suffixes(path)[1]
    return posixpath.join(folder, name[: len(name) - len(compression)].rpartition(".")[0])
