"""Reads sources as prepare does, for the tests of the readers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data_pipeline.documents import Document, Tally
from data_pipeline.sources import find_files, read_documents

TEXTS = ["first text", "second\ntext with ümlaut", "third 漢字"]


def read(*sources: object, exclude: Sequence[str] = (), **options: Any) -> tuple[list[Document], Tally]:
    """The documents of the sources, and the tally of reading them."""
    tally = Tally()
    files = find_files([str(source) for source in sources], exclude, "c")
    return list(read_documents(files, tally, **options)), tally


def texts(*sources: object, **options: Any) -> list[str]:
    """The texts of the sources' documents."""
    return [document.text for document in read(*sources, **options)[0]]


def dropped(tally: Tally) -> dict[str, int]:
    """How many documents were dropped for each reason."""
    return {reason: drop.documents for reason, drop in tally.dropped.items()}


def named(tally: Tally, reason: str) -> list[str]:
    """The sources that were dropped for the reason, sorted."""
    return sorted(source for _, source, _ in tally.dropped[reason].examples)
