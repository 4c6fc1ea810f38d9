"""A command's own options beside dotted overrides of a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from launcher.errors import UserError
from training.overrides import is_permission, permission_value

SECTIONS = (
    "run",
    "model",
    "data",
    "batch",
    "optimizer",
    "parallel",
    "training",
    "checkpoint",
    "evaluation",
    "cluster",
    "prepare",
)
"""The sections of a recipe: `--data FILE` sets a whole one."""


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are exceptions, so that they end like every other user mistake."""

    def __init__(self, command: str, description: str, example: str, takes_overrides: bool = False) -> None:
        self.takes_overrides = takes_overrides
        super().__init__(
            prog=f"trestle {command}",
            description=description,
            epilog=f"example:\n{example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def add_recipe(parser: Parser, needed: bool = True) -> None:
    """The arguments of a command that takes a recipe; overrides are split off before. needed: None without it."""
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs=None if needed else "?",
        help="a YAML file, or the name of a shipped recipe such as gpt3-125m",
    )
    parser.add_argument(
        "--print_config", action="store_true", help="print the resolved recipe, each key explained, and do nothing else"
    )


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the command's own words, overrides as `--section.key=value`). Raises UserError."""
    own: list[str] = []
    overrides: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not ("." in key or key in SECTIONS):
            own.append(word)
        elif is_permission(key):
            overrides.append(f"--{key.replace('-', '_')}={value if equals else permission_value(rest)}")
        elif equals:
            overrides.append(word)
        elif rest and not rest[0].startswith("--"):
            overrides.append(f"{word}={rest.pop(0)}")
        else:
            raise UserError(f"{word} has no value; write {word} VALUE")
    return own, overrides
