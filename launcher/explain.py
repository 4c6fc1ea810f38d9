"""What each key of a recipe means, from the docstrings that stand beneath the fields of its dataclasses."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
from collections.abc import Mapping
from textwrap import dedent


def comments(sections: Mapping[str, type]) -> dict[str, str]:
    """Dotted key -> its docstring on one line, for every documented field of the sections' dataclasses."""
    return {f"{section}.{name}": text for section, cls in sections.items() for name, text in field_docs(cls).items()}


def field_docs(cls: type) -> dict[str, str]:
    """Field -> the string beneath it in the source, inherited ones included."""
    found: dict[str, str] = {}
    for base in reversed([b for b in cls.__mro__ if dataclasses.is_dataclass(b)]):
        (definition,) = ast.parse(dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, beneath in itertools.pairwise(definition.body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(beneath, ast.Expr)
                and isinstance(beneath.value, ast.Constant)
                and isinstance(beneath.value.value, str)
            ):
                found[field.target.id] = " ".join(beneath.value.value.split())
    return found
