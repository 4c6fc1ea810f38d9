"""A run whose folder is gone but whose checkpoints live behind a URL: the folder made again, for a resume."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import EnvironmentFailure, UserError
from launcher.job import load_job
from launcher.run_folder import RunFolder, replace_file
from training.config import RunConfig
from training.overrides import split_overrides
from training.recipe import RECIPE_FILE, Recipe

if TYPE_CHECKING:
    from training.checkpoint.remote import RemoteFolder


def is_url(run: str) -> bool:
    """Whether a run is named by its URL rather than by its folder."""
    return "://" in run


def fetch_run(url: str, overrides: Sequence[str]) -> RunFolder:
    """The folder of the run at `url` in run.directory (an override, else `runs`), with recipe, tokenizer and history
    from there if it is new; its checkpoints stay where they are, and ranks read of them what they need.

    Raises UserError where there is no run, StorageUnreachable, EnvironmentFailure.
    """
    from training.checkpoint.remote import RemoteFolder

    location, _, name = url.rstrip("/").rpartition("/")
    directory = dict(split_overrides(overrides)).get("run.directory", RunConfig.directory)
    if not location or name in ("", ".", ".."):
        raise UserError(f"{url} is no run's place; name it as in s3://bucket/prefix/demo")
    remote = RemoteFolder(location, name)
    folder = RunFolder(Path(directory) / name)
    if folder.recipe.is_file():
        print(f"trestle: {folder.path} is here already; going on in it")
        return RunFolder.existing(str(folder.path))
    files = remote.run_files()
    if RECIPE_FILE not in files:
        raise UserError(f"{url} is no run's place: it has no {RECIPE_FILE}")
    if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
        raise UserError(f"{folder.path} exists and is no run's folder; choose another --run.directory")
    recipe = _for_here(files.pop(RECIPE_FILE), directory, location, name)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFailure(f"{folder.path} cannot be made: {error.strerror}") from error
    for file, content in files.items():
        replace_file(folder.path / file, content)
    folder.write_recipe(recipe)  # last: with it the folder is a run's
    return folder


def _for_here(recipe: bytes, directory: str, location: str, name: str) -> str:
    """The recipe as a run's folder here keeps it."""
    with tempfile.TemporaryDirectory(prefix="trestle-recipe-") as draft:
        path = Path(draft) / RECIPE_FILE
        path.write_bytes(recipe)
        own = [f"--run.name={name}", f"--run.directory={directory}", f"--checkpoint.remote={location}"]
        return load_job(path, own).to_yaml()


def check_not_begun(recipe: Recipe) -> None:
    """Refuse to start a run anew that has checkpoints behind its `checkpoint.remote`. Raises UserError,
    StorageUnreachable.
    """
    location = begun_elsewhere(recipe)
    if location is not None:
        raise UserError(
            f"{location} has checkpoints already: continue with `trestle resume {location}`, or give this run another "
            "--run.name"
        )


def begun_elsewhere(recipe: Recipe) -> str | None:
    """The URL of this run behind its `checkpoint.remote` if it has a checkpoint there. Raises StorageUnreachable."""
    if recipe.checkpoint.remote is None:
        return None
    from training.checkpoint.remote import RemoteFolder

    remote = RemoteFolder(recipe.checkpoint.remote, recipe.run.name)
    return None if remote.newest(set()) is None else remote.location


def open_checkpoint(url: str) -> tuple[RemoteFolder, str]:
    """The place of the checkpoint at URL/NAME/checkpoints/step-…, and its name. Raises UserError."""
    from training.checkpoint.remote import RemoteFolder

    place, _, name = url.rstrip("/").rpartition("/")
    run, _, kind = place.rpartition("/")
    location, _, run_name = run.rpartition("/")
    if kind != "checkpoints" or not location or not run_name:
        raise UserError(f"{url} is no checkpoint's place; it looks like s3://bucket/prefix/NAME/checkpoints/{name}")
    return RemoteFolder(location, run_name), name
