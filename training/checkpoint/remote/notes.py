"""How ranks agree, through files beside the local checkpoints, on what is uploaded and that all of it has arrived.

Rank 0 announces a checkpoint; every rank uploads its share and notes that it has arrived, or why not yet. Notes name
the manifest's digest: those of another save of the same step, or of an earlier process, mean nothing.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = ".uploads"


@dataclass(frozen=True)
class Announcement:
    """A local checkpoint that is being uploaded."""

    name: str
    digest: str
    """What stands in its manifest.json.sha256."""


@dataclass(frozen=True)
class Standing:
    """How far the other ranks are with an announced checkpoint."""

    arrived: int
    failing: str | None
    """Why a rank's files have not arrived yet, if one has tried in vain."""


class Notes:
    """The notes of one rank's uploads. Everything raises OSError."""

    def __init__(self, directory: Path, rank: int, world_size: int) -> None:
        self._folder = directory / FOLDER
        self._rank = rank
        self._world_size = world_size

    def clear(self) -> None:
        """Forget what an earlier process noted."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def announce(self, announcement: Announcement) -> None:
        self._write("announced", {"name": announcement.name, "digest": announcement.digest})

    def announced(self) -> Announcement | None:
        found = self._read("announced")
        return None if found is None else Announcement(found["name"], found["digest"])

    def arrived(self, announcement: Announcement) -> None:
        """This rank's files are there and verified."""
        self._write(f"rank-{self._rank:05d}", {"digest": announcement.digest, "failing": None})

    def failing(self, announcement: Announcement, reason: str) -> None:
        """This rank's files have not arrived yet; it goes on trying."""
        self._write(f"rank-{self._rank:05d}", {"digest": announcement.digest, "failing": reason})

    def standing(self, announcement: Announcement) -> Standing:
        arrived, failing = 0, None
        for rank in range(self._world_size):
            note = self._read(f"rank-{rank:05d}")
            if note is None or note["digest"] != announcement.digest:
                continue
            if note["failing"] is None:
                arrived += 1
            elif failing is None:
                failing = f"rank {rank}: {note['failing']}"
        return Standing(arrived, failing)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        self._folder.mkdir(exist_ok=True)
        draft = self._folder / f".{name}"
        draft.write_text(json.dumps(content))
        draft.replace(self._folder / name)  # a reader sees all of it or nothing

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads((self._folder / name).read_bytes())
        except FileNotFoundError:
            return None
        return content
