"""Recipe files and dotted overrides: the plain values that `sections` turns into dataclasses."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from training.errors import RecipeError
from training.sections import Document, dataclass_in, hints_by_key, known_keys, optional, short, unknown_key

MOST_VALUES = 100_000
"""In a document: an alias stands for all that it names, so that a page of them can stand for more than any memory."""


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses a key that is written twice: the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(
                    problem=f"{key_node.value} is written twice", problem_mark=key_node.start_mark
                )
            seen.add(str(key_node.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Document:
    """The mapping in a YAML file (safe types only). Raises RecipeError when there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}"
        ) from error
    document = _load(text, str(path))
    if not isinstance(document, dict):
        raise RecipeError(f"{path} must hold sections such as `model:` and `data:`, but holds {short(document)}")
    return document


def _load(text: str, where: str) -> Any:
    try:
        loader = _UniqueKeys(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _values_of(node) > MOST_VALUES:
            raise RecipeError(
                f"{where} holds more than {MOST_VALUES:,} values, aliases counted each time; no recipe does"
            )
        return loader.construct_document(node)
    except RecursionError:
        raise RecipeError(f"{where} is nested deeper than any recipe") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise RecipeError(f"{where} is not valid YAML{place}: {reason}") from error


def _values_of(root: yaml.Node) -> int:
    """Scalars and collections beneath a node, counting what an alias names once for each time that it is named."""
    counts: dict[int, int] = {}

    def count(node: yaml.Node) -> int:
        if id(node) not in counts:
            counts[id(node)] = MOST_VALUES + 1  # met again within itself: endless
            beneath = (
                [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            )
            counts[id(node)] = 1 + (0 if isinstance(node, yaml.ScalarNode) else sum(map(count, beneath)))
        return counts[id(node)]

    return count(root)


def apply_overrides(document: Document, overrides: Sequence[str], sections: Mapping[str, type]) -> Document:
    """A copy of `document` with `--section.key value` (or `--section.key=value`) set. Raises RecipeError.

    Lists are indexed by number (`--data.mix.0.weight 2`); a whole section is set from a mapping or a YAML file's path.
    """
    result = copy.deepcopy(document)
    known = known_keys(sections)
    for key, text in split_overrides(overrides):
        first, *path = key.split(".")
        if first not in sections:
            raise unknown_key(key, known)
        _set(result, first, path, sections[first], key, text, known)
    return result


PERMISSIONS = ("data.allow_change",)
"""Keys that are true when they are named without a value, and may be written with a hyphen."""


def is_permission(key: str) -> bool:
    """Whether a key, with hyphens or underscores, is one of those."""
    return key.replace("-", "_") in PERMISSIONS


def permission_value(following: list[str]) -> str:
    """The value of a permission, taken off what follows it on the command line if it stands there."""
    return following.pop(0) if following and following[0].lower() in ("true", "false") else "true"


def split_overrides(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """(dotted key, text) of each override. Raises RecipeError for a word that is none, or one without its value."""
    pairs, rest = [], list(overrides)
    while rest:
        word = rest.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise RecipeError(f"{word!r} is no override; write --section.key value, such as --optimizer.lr 3e-4")
        if is_permission(key):
            key = key.replace("-", "_")
            text = text if equals else permission_value(rest)
        elif not equals:
            if not rest or rest[0].startswith("--"):
                raise RecipeError(f"--{key} has no value; write --{key} VALUE")
            text = rest.pop(0)
        pairs.append((key, text))
    return pairs


def _set(owner: Any, slot: Any, path: list[str], hint: Any, key: str, text: str, known: Sequence[str]) -> None:
    """Put the value that `text` stands for at `path` below `owner[slot]`, whose type is `hint`."""
    old = owner[slot] if isinstance(owner, list) else owner.get(slot)
    if not path:
        value = _read_text(text, hint, key)
        owner[slot] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        return
    if isinstance(old, str) and dataclasses.is_dataclass(hint):
        old = owner[slot] = read_yaml(Path(old))  # a section that names its file
    if old is None:
        old = owner[slot] = {}
    name, *rest = path
    inner = dataclass_in(hint)
    if isinstance(old, list):
        if not name.isdigit() or int(name) >= len(old):
            raise RecipeError(f"{key}: {name} is no element of a list of {len(old)}; count from 0")
        _set(old, int(name), rest, inner or (get_args(hint) or (str,))[0], key, text, known)
    elif isinstance(old, dict) and inner and name in hints_by_key(inner):
        _set(old, name, rest, hints_by_key(inner)[name], key, text, known)
    elif isinstance(old, dict) and get_origin(hint) is dict and not rest:
        old[name] = _read_text(text, get_args(hint)[1], key)
    else:
        raise unknown_key(key, known)


def _read_text(text: str, hint: Any, key: str) -> Any:
    """Text stays text for plain types, which jsonargparse reads; mappings and lists are YAML, or a section's file."""
    if text in ("null", "~") and optional(hint):
        return None
    if dataclasses.is_dataclass(hint) and not text.lstrip().startswith("{"):
        return read_yaml(Path(text))
    if dataclass_in(hint) or get_origin(hint) in (list, tuple, dict):
        return _load(text, f"the value of --{key}")
    return text
