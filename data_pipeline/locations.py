"""What a recipe may write for `shards`: a folder, or a URL of a scheme that is known.

`pipe:` and the like, which run programs, and fsspec's chained URLs are refused.
"""

from __future__ import annotations

import re
from pathlib import Path

from data_pipeline.errors import BadShards

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp", "memory": "fsspec"}
"""Scheme -> the package that reads it."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


def is_remote(location: str) -> bool:
    """Whether a recipe's `shards` is a URL. Raises BadShards for a URL of a scheme that is not read."""
    match = _SCHEME.match(location)
    if match is None:
        return False
    scheme = match[1]
    if scheme not in PACKAGES or not location.startswith(f"{scheme}://") or "::" in location:
        raise BadShards(
            f"{location}: shards are read from folders, s3://, gs://, http:// and https:// alone (a folder whose name "
            "has a colon: write ./ before it)"
        )
    if "?" in location or "#" in location:
        raise BadShards(f"{location}: the URL of a shard set's folder has no query (? or #)")
    return True


def anchored(location: str) -> str:
    """The same place from any current directory."""
    return location if is_remote(location) else str(Path(location).absolute())
