"""What an attacker plants, and how a test sees that nothing of it has come to pass."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Canary:
    """Touches `path` when it is unpickled, or built by a YAML tag."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Mode and checksum of everything in a folder, links as what they say."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if path.is_symlink():
            said = os.readlink(path)
        elif path.is_file():
            said = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            said = ""
        found[str(path.relative_to(folder))] = mode, said
    return found


@contextmanager
def untouched(outside: Path) -> Iterator[Path]:
    """A folder in which nothing may change: with a secret, and room for a canary. The path of the canary."""
    outside.mkdir(exist_ok=True)
    (outside / "secret.txt").write_text("the family jewels\n")
    before = contents(outside)
    yield outside / "canary"
    assert contents(outside) == before


def sign(checkpoint: Path, manifest: dict[str, Any] | None = None) -> None:
    """Make a checkpoint's manifest agree with its files, as whoever forges one would."""
    manifest = json.loads((checkpoint / "manifest.json").read_text()) if manifest is None else manifest
    for name, about in manifest["files"].items():
        path = checkpoint / name
        if path.is_file():
            about.update(size=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    raw = json.dumps(manifest).encode()
    (checkpoint / "manifest.json").write_bytes(raw)
    digest(checkpoint)


def digest(checkpoint: Path) -> None:
    """Write the checksum of the manifest as it is."""
    raw = (checkpoint / "manifest.json").read_bytes()
    (checkpoint / "manifest.json.sha256").write_text(f"{hashlib.sha256(raw).hexdigest()}  manifest.json\n")
