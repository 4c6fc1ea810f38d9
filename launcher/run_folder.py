"""A run's folder: what lies where in it, and who may write there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.errors import EnvironmentFailure, UserError
from training.recipe import RECIPE_FILE

TOKENIZERS = ("tokenizer.model", "merges.txt", "merges.txt.gz")
"""What a tokenizer's file can be called: a SentencePiece model, or CLIP's byte-pair merges."""


LOCK = ".lock"
"""What whoever trains in the folder holds."""


class RunFolder:
    """`runs/NAME/`: recipe.yaml, tokenizer.model (or merges.txt), checkpoints/, tensorboard/, metrics.jsonl,
    goodput.json, events.jsonl, logs/, what `trestle evaluate` draws in evaluation/, and what `trestle profile` records
    in profile/.

    Movable as a whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / RECIPE_FILE
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.metrics = path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self.logs = path / "logs"

    @property
    def tokenizer(self) -> Path:
        """The copy of the tokenizer; where it belongs if there is none."""
        places = [self.path / name for name in TOKENIZERS]
        return next((place for place in places if place.is_file()), places[0])

    @classmethod
    def existing(cls, source: str) -> RunFolder:
        """The run in a folder that the user named. Raises UserError when it is none."""
        folder = cls(Path(source))
        if not folder.recipe.is_file():
            reason = f"it has no {RECIPE_FILE}" if folder.path.is_dir() else "it does not exist"
            raise UserError(f"{source} is no run's folder: {reason}")
        for place in (folder.path, folder.logs, folder.path / "evaluation", folder.path / "profile"):
            for path in place.glob("*"):  # hidden ones, too
                if path.is_symlink():  # a folder from elsewhere could have us write to any file of ours
                    raise UserError(f"{path} is a link, and would be written to: put what it leads to in its place")
        return folder

    def create(self, recipe: str, tokenizer: Path) -> None:
        """Make the folder of a new run with its recipe and a copy of its tokenizer in it.

        Raises UserError if something that must not be lost is there, EnvironmentFailure if it cannot be written.
        """
        if self.has_checkpoints():
            raise UserError(
                f"{self.path} has checkpoints already: continue with `trestle resume {self.path}`, "
                "or give this run another --run.name"
            )
        if self.path.exists() and not self.recipe.is_file() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(f"{self.path} exists and is no run's folder; choose another --run.name")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentFailure(f"{self.path} cannot be made: {error.strerror}") from error
        for name in TOKENIZERS:  # of an attempt with other shards
            (self.path / name).unlink(missing_ok=True)
        # A cache of remote files puts a hash before the name.
        name = next((name for name in TOKENIZERS if tokenizer.name.endswith(name)), TOKENIZERS[0])
        replace_file(self.path / name, tokenizer.read_bytes())
        self.write_recipe(recipe)

    def has_checkpoints(self) -> bool:
        """Whether a checkpoint is there, by name alone."""
        return next(iter(self.checkpoints.glob("step-????????*")), None) is not None

    def write_recipe(self, text: str, *, keep_old: bool = False) -> None:
        """Put recipe.yaml in place, whole or not at all; the old one stays as recipe-<n>.yaml if asked."""
        if keep_old:
            number = 1
            while (kept := self.recipe.with_name(f"recipe-{number}.yaml")).exists():
                number += 1
            replace_file(kept, self.recipe.read_bytes())
        replace_file(self.recipe, text.encode())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder against a second `trestle` that would train in it. Raises UserError if one does."""
        try:
            file = (self.path / LOCK).open("w")
        except OSError as error:
            raise EnvironmentFailure(f"{self.path} cannot be written: {error.strerror}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path} is being trained by another trestle; wait for it, or stop it") from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
                # A file system without locks (some NFS, Lustre): nothing can be held, training must still be possible.
            yield

    def last_figures(self) -> dict[str, Any]:
        """The newest value of every figure in metrics.jsonl; {} before the first line."""
        figures: dict[str, Any] = {}
        if self.metrics.is_file():
            with self.metrics.open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    figures.update({k: v for k, v in _parse(line).items() if v is not None})
        return figures


def _parse(line: str) -> dict[str, Any]:
    """The figures on a line, {} for the fragment that a crash or a full disk left of one."""
    try:
        figures = json.loads(line)
    except ValueError:
        return {}
    return figures if isinstance(figures, dict) else {}


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or as before. Raises EnvironmentFailure."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise EnvironmentFailure(f"{path} cannot be written: {error.strerror}") from error
