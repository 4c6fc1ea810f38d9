"""Where a recipe comes from: a YAML file, a run's folder, or the name of one that ships."""

from __future__ import annotations

import difflib
from pathlib import Path

from launcher.errors import UserError

SHIPPED = Path(__file__).with_name("recipes")


def shipped_names() -> list[str]:
    """The recipes that ship, by name."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def find_recipe(source: str) -> Path:
    """The file behind what the user wrote: what exists under that path, else the shipped recipe of that name.

    Raises UserError naming the recipes that ship.
    """
    path = Path(source)
    if path.is_file():
        return path
    shipped = SHIPPED / f"{source}.yaml"
    if path.parent == Path(".") and shipped.is_file():
        return shipped
    if path.is_dir():
        return path
    near = difflib.get_close_matches(source, shipped_names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"these ship: {', '.join(shipped_names())}"
    raise UserError(f"there is no recipe {source}: neither a file nor a shipped name; {hint}")
