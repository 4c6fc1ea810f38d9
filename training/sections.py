"""A section of a recipe: from plain YAML values and dotted overrides to a typed dataclass, through jsonargparse.

jsonargparse decides what a value of each type may look like; this module adds what a user needs when it says no: the
key, the value, what would fit, and for an unknown key the nearest known one. A field whose key is no name in Python
has the key in its metadata: `from_: str = field(metadata={"key": "from"})`.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from training.errors import RecipeError

T = TypeVar("T")
Document = dict[str, Any]


def parse_section(cls: type[T], document: object, key: str, known: Sequence[str] = ()) -> T:
    """The dataclass `cls` from the mapping of section `key`; what is not written has its default.

    `known` are dotted keys of other sections, to which an unknown key may be nearer. Raises RecipeError.
    """
    leaves = list(_leaves(cls, {} if document is None else document, key, [*known_keys({key: cls}), *known]))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "section")  # type: ignore[arg-type]
    try:
        return parser.instantiate(parser.parse_object({"section": _by_field_name(cls, document or {})})).section
    except ArgumentError as error:
        for leaf, hint, value in leaves:
            if not _fits(hint, value):
                raise RecipeError(f"{leaf} is {short(value)}; it must be {expected(hint)}") from error
        raise RecipeError(f"{key}: {' '.join(str(error).split())}") from error


def known_keys(sections: Mapping[str, type]) -> list[str]:
    """The dotted keys of sections, nested ones included; elements of lists stand behind their list's key."""
    keys = []
    for name, cls in sections.items():
        keys.append(name)
        for field, hint in hints_by_key(cls).items():
            inner = dataclass_in(hint)
            keys.extend(known_keys({f"{name}.{field}": inner}) if inner else [f"{name}.{field}"])
    return keys


def hints_by_key(cls: type) -> dict[str, Any]:
    """The keys of a dataclass, as they are written, with their types."""
    hints = get_type_hints(cls)
    return {_key(field): hints[field.name] for field in dataclasses.fields(cls)}


def _key(field: dataclasses.Field[Any]) -> str:
    return str(field.metadata.get("key", field.name))


def _by_field_name(hint: Any, value: Any) -> Any:
    """A copy of a document with each key replaced by the name of its field."""
    inner = dataclass_in(hint)
    if inner is None or not isinstance(value, (dict, list)):
        return copy.deepcopy(value)
    if isinstance(value, list):
        return [_by_field_name(inner, element) for element in value]
    fields, hints = {_key(field): field.name for field in dataclasses.fields(inner)}, get_type_hints(inner)
    return {fields[key]: _by_field_name(hints[fields[key]], element) for key, element in value.items()}


def unknown_key(key: str, known: Sequence[str]) -> RecipeError:
    """The error for a key that does not exist; it names the nearest one that does."""
    name, section = key.rpartition(".")[2], ".".join(part for part in key.split(".")[:-1] if not part.isdigit())
    same_name = [k for k in known if k.rpartition(".")[2] == name]
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    everywhere = {k.rpartition(".")[2]: k for k in reversed(known)}
    near = (
        same_name
        or [siblings[n] for n in difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)]
        or [everywhere[n] for n in difflib.get_close_matches(name, everywhere, n=1, cutoff=0.75)]
    )
    if near:
        return RecipeError(f"{key} does not exist; did you mean {near[0]}?")
    where = section if siblings and section else "a recipe"
    names = siblings or {k: k for k in known if "." not in k}
    return RecipeError(f"{key} does not exist; {where} has {', '.join(sorted(names))}")


def _leaves(cls: type, document: object, key: str, known: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
    """(key, type, value) of every plain value below a section. Raises RecipeError for unknown, null or missing keys."""
    if not isinstance(document, dict):
        raise RecipeError(f"{key} is {short(document)}; it must be a mapping with {', '.join(hints_by_key(cls))}")
    hints = hints_by_key(cls)
    for name in document:
        if name not in hints:
            raise unknown_key(f"{key}.{name}", known)
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        name = _key(field)
        if name not in document:
            if required:
                raise RecipeError(f"{key}.{name} is missing; it must be {expected(hints[name])}")
            continue
        yield from _leaves_of_value(hints[name], document[name], f"{key}.{name}", known)


def _leaves_of_value(hint: Any, value: Any, key: str, known: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
    inner = dataclass_in(hint)
    if value is None and not optional(hint):
        raise RecipeError(f"{key} is null; it must be {expected(hint)}")
    if isinstance(value, bool) and bool not in _members(hint):
        # Python counts true as 1, so a Literal of numbers would take it.
        raise RecipeError(f"{key} is {short(value)}; it must be {expected(hint)}")
    if inner is None or value is None:
        yield key, hint, value
    elif list in (get_origin(hint), *map(get_origin, get_args(hint))):
        if not isinstance(value, list):
            raise RecipeError(f"{key} is {short(value)}; it must be {expected(hint)}")
        for number, element in enumerate(value):
            yield from _leaves(inner, element, f"{key}.{number}", [*known, *known_keys({f"{key}.{number}": inner})])
    else:
        yield from _leaves(inner, value, key, known)


def _fits(hint: Any, value: Any) -> bool:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        parser.parse_object({"value": value})
    except ArgumentError:
        return False
    return True


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def optional(hint: Any) -> bool:
    return type(None) in _members(hint)


def dataclass_in(hint: Any) -> type | None:
    """The dataclass that `X`, `X | None`, `list[X]` is about, else None."""
    for member in (*_members(hint), *(a for m in _members(hint) if get_origin(m) is list for a in get_args(m))):
        if isinstance(member, type) and dataclasses.is_dataclass(member):
            return member
    return None


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def expected(hint: Any) -> str:
    """What a value of a type looks like, in words."""
    origin, members = get_origin(hint), _members(hint)
    if len(members) > 1:
        return " or ".join(expected(m) for m in members)
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in get_args(hint))
    if origin is tuple:
        return f"a list of {len(get_args(hint))}: " + ", ".join(expected(a) for a in get_args(hint))
    if origin is list:
        return f"a list, each element {expected(get_args(hint)[0])}"
    if origin is dict:
        return f"a mapping from names to values, each {expected(get_args(hint)[1])}"
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return "a mapping with " + ", ".join(hints_by_key(hint))
    return _WORDS.get(hint, str(hint))


def short(value: object) -> str:
    text = "nothing" if value is None else yaml.safe_dump(value, default_flow_style=True, width=10**6)
    text = " ".join(text.removesuffix("...\n").split())
    return text if len(text) <= 80 else text[:77] + "..."


def to_plain(section: Any) -> Any:
    """A dataclass as the plain values that YAML holds: the inverse of `parse_section`."""
    if dataclasses.is_dataclass(section) and not isinstance(section, type):
        return {_key(f): to_plain(getattr(section, f.name)) for f in dataclasses.fields(section)}
    if isinstance(section, (list, tuple)):
        return [to_plain(element) for element in section]
    return dict(section) if isinstance(section, dict) else section
