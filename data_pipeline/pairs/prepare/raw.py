"""A pair as it is found: a caption, and the way to its picture."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.errors import BadConfig, BadCorpus, EnvironmentFailure
from data_pipeline.pairs.prepare.pictures import Unfit
from data_pipeline.sources import open_source
from data_pipeline.sources.remote import filesystem, patiently

NO_FILE = "read: no such file"
UNREADABLE = "read: a file that cannot be read"
TOO_LARGE = "read: larger than max_picture_bytes"
EMPTY = "read: empty file"
DEAD_LINK = "read: dead link"
NO_ACCESS = "read: access refused"
NO_ANSWER = "read: server out of reach"
NO_PICTURE = "read: a caption without a picture"
REPEATED = "read: another picture or caption of the same name"
NO_URL = "read: neither a path nor a URL of a known kind"

_BLOCK = 1 << 20
#: Of a server that sends a little now and then.
_MOST_SECONDS = 120.0


@dataclass
class RawPair:
    """caption: None if there is none. load: the picture's bytes, or Unfit with the reason. near: it costs little."""

    key: str
    source: str
    caption: str | None
    load: Callable[[], bytes]
    near: bool = True
    wrong: str | None = None
    """The reason for dropping it, if that is known before anything is looked at."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What is stored beside the pair."""


def unfit(reason: str) -> Callable[[], bytes]:
    """A `load` that fails."""

    def load() -> bytes:
        raise Unfit(reason)

    return load


def loader(path: str, limit: int) -> Callable[[], bytes]:
    """Reads the picture at a local path or a URL, of `limit` bytes at most."""
    return lambda: _fetched(path, limit) if "://" in path else _read(path, limit)


def _read(path: str, limit: int) -> bytes:
    try:
        with open_source(path) as file:
            return bounded(file.read(limit + 1), limit)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Unfit(NO_FILE) from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise Unfit(UNREADABLE) from error


def bounded(content: bytes, limit: int) -> bytes:
    """The content, unless it is empty or longer than the limit. Raises Unfit."""
    if len(content) > limit:
        raise Unfit(TOO_LARGE)
    if not content:
        raise Unfit(EMPTY)
    return content


def _fetched(url: str, limit: int) -> bytes:
    """Transient errors are tried again, as those of sources are; a server that keeps silent is not."""

    def get() -> bytes:
        try:
            with filesystem(url).open(url, "rb", **_streamed(url)) as file:
                pieces, size, begun = [], 0, time.monotonic()
                while size <= limit and (piece := file.read(_BLOCK)):
                    pieces.append(piece)
                    size += len(piece)
                    if time.monotonic() - begun > _MOST_SECONDS:
                        raise TimeoutError
                return b"".join(pieces)
        except TimeoutError as error:
            raise EnvironmentFailure(f"{url} gives no answer in time") from error

    try:
        return bounded(patiently(url, get), limit)
    except BadConfig as error:
        raise Unfit(NO_URL) from error
    except BadCorpus as error:
        raise Unfit(NO_ACCESS if "may not be read" in str(error) else DEAD_LINK) from error
    except (EnvironmentFailure, ValueError) as error:
        raise Unfit(NO_ANSWER) from error


def _streamed(url: str) -> dict[str, Any]:
    """One request for the whole: fsspec would ask for the size before, unless it is told one, which it then ignores."""
    return {"block_size": 0, "size": 1} if url.startswith(("http://", "https://")) else {}
