"""What a recipe's sources name: local files, folders and globs, and URLs; each file once, in a fixed order."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from data_pipeline.errors import BadConfig, BadCorpus, EnvironmentFailure
from data_pipeline.sources.remote import RemoteFile, filesystem, patiently

#: What stores call the thing that changes with the file, in the order of preference.
_VERSIONS = ("ETag", "etag", "md5Hash", "Content-MD5", "Last-Modified", "LastModified", "mtime", "updated", "created")
_WILD = re.compile(r"[*?[]")


@dataclass(frozen=True)
class SourceFile:
    """path: local, or a URL. size: bytes, compressed as it is; 0 if nobody says.

    version: something that changes when the file does, "" if nobody says.
    """

    path: str
    size: int
    version: str


def find_files(sources: Sequence[str], exclude: Sequence[str], corpus: str) -> list[SourceFile]:
    """The files that `sources` name and `exclude` does not, sorted by path; of several names of one file the first.

    A source is a file, a folder (all files below it), a glob (`**` too) or a URL: http(s)://, s3://, gs:// or memory://,
    with globs and folders where the store can list. {stdlib} and {site_packages} stand for those of the running Python.
    Names that begin with a dot are passed over, unless the source names them. exclude: shell patterns, * also matches
    slashes. Raises BadConfig or BadCorpus, also if there is no file; EnvironmentFailure if a store cannot be reached.
    """
    found: dict[str, SourceFile | None] = {}
    for source in sources:
        pattern = _filled(source, corpus).removeprefix("file://")
        try:
            if "://" in pattern:
                found.update((file.path, file) for file in _remote(pattern))
            else:
                named = [pattern] if os.path.lexists(pattern) and not os.path.isdir(pattern) else list(_local(pattern))
                if not named and not _WILD.search(pattern):
                    raise BadCorpus(f"no file matches {pattern}")
                found.update((path, None) for path in named)
        except (BadConfig, BadCorpus, EnvironmentFailure) as error:
            raise type(error)(f"corpus {corpus}: {error}") from error
    paths = [path for path in sorted(found) if not any(fnmatch.fnmatchcase(path, pattern) for pattern in exclude)]
    if not paths:
        raise BadCorpus(f"corpus {corpus}: no file matches {', '.join(sources)}")
    files: dict[str, SourceFile] = {}
    for path in paths:
        file = found[path]
        files.setdefault(path if file else os.path.realpath(path), file or _local_file(path))
    return list(files.values())


def open_source(path: str) -> BinaryIO:
    """A local file or one behind a URL, for reading in any order.

    Raises OSError if a local one cannot be opened; BadConfig, BadCorpus or EnvironmentFailure for a URL.
    """
    if "://" in path:
        return cast(BinaryIO, RemoteFile(path))
    if os.path.isdir(path):
        os.listdir(path)  # the error of a folder that may not be entered
    elif not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(0, "Not a regular file")  # opening a pipe would wait for ever
    return open(path, "rb")


def _filled(source: str, corpus: str) -> str:
    try:
        return source.format(stdlib=sysconfig.get_path("stdlib"), site_packages=sysconfig.get_path("purelib"))
    except (KeyError, IndexError, ValueError) as error:
        raise BadConfig(
            f'corpus {corpus}: source "{source}": only {{stdlib}} and {{site_packages}} may stand in braces'
        ) from error


def _local_file(path: str) -> SourceFile:
    try:
        status = os.stat(path)
    except OSError:  # a dangling link: reading it will say so
        return SourceFile(path, 0, "")
    # The time of the inode too: a copy may bring the time of its original along, and permissions may change.
    return SourceFile(path, status.st_size, f"{status.st_mtime_ns}.{status.st_ctime_ns}.{status.st_ino}")


def _local(pattern: str) -> Iterator[str]:
    if os.path.isdir(pattern):
        pattern = os.path.join(glob.escape(pattern), "**", "*")
    parts = pattern.split(os.sep)
    if "**" not in parts:
        yield from (path for path in glob.glob(pattern) if not os.path.isdir(path))
        return
    # glob's own ** runs in circles where links do.
    first = parts.index("**")
    top, rest = os.sep.join(parts[:first]), os.sep.join(parts[first + 1 :]) or "*"
    tops = [folder for folder in glob.glob(top) if os.path.isdir(folder)] if top else [os.sep if parts[0] == "" else ""]
    for folder in tops:
        for inner, readable in _folders(folder):
            if readable:
                yield from _local(os.path.join(glob.escape(inner), rest))
            else:
                yield inner


def _folders(top: str) -> Iterator[tuple[str, bool]]:
    """A folder and those below it, each once, and whether it can be read. Links are followed after all else."""
    seen: set[str] = set()
    folders, links = [top], list[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder or "."), key=lambda entry: entry.name, reverse=True)
        except OSError:
            yield folder, False
            continue
        yield folder, True
        for entry in entries:
            if not entry.name.startswith(".") and os.path.isdir(entry.path):
                (links if entry.is_symlink() else folders).append(os.path.join(folder, entry.name))


def _remote(url: str) -> list[SourceFile]:
    fs = filesystem(url)
    scheme, _, name = url.partition("://")
    if scheme in ("http", "https"):
        if "*" in url:
            raise BadConfig(f"{url}: an http server cannot list its files, so each needs a URL of its own, without *")
        return [_remote_file(url, patiently(url, lambda: fs.info(url)))]
    if _WILD.search(name):
        infos = patiently(url, lambda: fs.glob(url, detail=True))
    else:
        info = patiently(url, lambda: fs.info(url))
        if info["type"] == "file":
            return [_remote_file(url, info)]
        infos = patiently(url, lambda: fs.find(url, detail=True))
        folder = str(info["name"])
        infos = {name: inner for name, inner in infos.items() if "/." not in name.removeprefix(folder)}
    return [
        _remote_file(f"{scheme}://{name.lstrip('/')}", info) for name, info in infos.items() if info["type"] == "file"
    ]


def _remote_file(url: str, info: dict[str, Any]) -> SourceFile:
    version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
    return SourceFile(url, int(info.get("size") or 0), version)
