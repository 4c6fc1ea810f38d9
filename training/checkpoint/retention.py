"""Which checkpoints stay: the last few, the best, and every so many steps one for good."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from training.checkpoint.errors import DamagedCheckpoint, UnknownFormat
from training.checkpoint.format import candidates, fsync_directory, step_of
from training.checkpoint.reader import Checkpoint

_log = logging.getLogger("trestle.checkpoint")

PARTIAL = ".partial"
DELETED = ".deleted"
REPLACED = ".replaced"
FAILED = ".failed"


@dataclass(frozen=True)
class Retention:
    """Keep the last `keep`, every step that `keep_every` divides, and the lowest `state["validation_loss"]`."""

    keep: int = 3
    keep_best: bool = True
    keep_every: int | None = None

    def __post_init__(self) -> None:
        if self.keep < 1 or (self.keep_every is not None and self.keep_every < 1):
            raise ValueError(f"keep ({self.keep}) and keep_every ({self.keep_every}) must be at least 1")

    def surplus(self, losses: dict[int, float | None]) -> list[int]:
        """The steps to delete, oldest first, of checkpoints given as step → validation loss (None: not known)."""
        steps = sorted(losses)
        kept = set(steps[-self.keep :])
        if self.keep_every is not None:
            kept.update(step for step in steps if step % self.keep_every == 0)
        finite = {step: loss for step, loss in losses.items() if loss is not None and math.isfinite(loss)}
        if self.keep_best and finite:
            kept.add(min(finite, key=lambda step: (finite[step], -step)))
        return [step for step in steps if step not in kept]


def apply(retention: Retention, directory: Path, spared: Collection[str | None]) -> list[Path]:
    """Delete what `retention` does not keep, but for the names `spared`; the paths that went.

    A checkpoint whose manifest does not read is left for the loader to name. Raises OSError if a rename fails.
    """
    losses: dict[int, float | None] = {}
    paths: dict[int, Path] = {}
    for path in candidates(directory):
        try:
            loss = Checkpoint(path).state.get("validation_loss")
        except (DamagedCheckpoint, UnknownFormat):
            continue
        step = step_of(path.name) or 0
        losses[step], paths[step] = loss, path
    surplus = [paths[step] for step in retention.surplus(losses) if paths[step].name not in spared]
    for path in surplus:
        remove(path)
    return surplus


def remove(path: Path) -> None:
    """Take a checkpoint away at once (rename), then free its space; what a crash leaves, `sweep` finishes."""
    doomed = path.with_name(f".{path.name}{DELETED}")
    if doomed.exists():
        _free(doomed)
    path.rename(doomed)
    fsync_directory(path.parent)
    _free(doomed)


def sweep(directory: Path) -> None:
    """Clear what an earlier process left under dotted names. Only when no rank is writing there.

    A checkpoint that was about to be replaced comes back if its successor never took its place.
    """
    for path in sorted(directory.glob(".step-*")):
        if path.suffix == REPLACED and not path.with_name(path.stem[1:]).exists():
            path.rename(path.with_name(path.stem[1:]))
        elif path.suffix in (PARTIAL, DELETED, REPLACED):
            _free(path)
        elif path.suffix.startswith(FAILED):  # also the draft of one
            path.unlink()


def _free(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        # On NFS a file that another rank still has mapped cannot go yet. It has lost its name; the next sweep frees it.
        _log.warning("could not yet free %s: %s", path, error)
