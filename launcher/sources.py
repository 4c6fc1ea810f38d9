"""Where a recipe comes from: a YAML file, a run's folder, or the name of one that ships."""

from __future__ import annotations

import difflib
from pathlib import Path

from launcher.errors import UserError

SHIPPED = Path(__file__).with_name("recipes")
MIX_ENDING = "-mix"
"""Ends the names of files that ship beside the recipes and hold only what is read, for `trestle inspect`."""


def shipped_names() -> list[str]:
    """The recipes that ship, by name."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml") if not path.stem.endswith(MIX_ENDING))


def find_recipe(source: str) -> Path:
    """The file behind what the user wrote: what exists under that path, else the shipped recipe of that name.

    Raises UserError naming the recipes that ship.
    """
    path = find_file(source)
    if path is not None:
        if path.is_file() and path.stem.endswith(MIX_ENDING) and path.parent == SHIPPED:
            raise UserError(
                f"{source} is a mix, no recipe: it says how much is read of what; see it with "
                f"`trestle inspect {source} --tokens 300B`, and train with --data FILE, a mix of shards that are there"
            )
        return path
    near = difflib.get_close_matches(source, shipped_names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"these ship: {', '.join(shipped_names())}"
    raise UserError(f"there is no recipe {source}: neither a file nor a shipped name; {hint}")


def find_file(source: str) -> Path | None:
    """What exists under a path that the user wrote, or the shipped recipe or mix of that name."""
    path = Path(source)
    if path.is_file():
        return path
    shipped = SHIPPED / f"{source}.yaml"
    if path.parent == Path(".") and shipped.is_file():
        return shipped
    return path if path.exists() else None
