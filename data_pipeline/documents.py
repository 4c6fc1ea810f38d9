"""A document on its way through the stages, and the tally of what became of all of them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

#: Dropped documents of which a tally keeps an excerpt, for each reason.
EXAMPLES = 20
_EXCERPT_CHARACTERS = 800
_REASONS = 4  # that a line names


@dataclass(slots=True)
class Document:
    """source: where it came from, for messages (`path`, `path:line` or a URL)."""

    text: str
    source: str
    html: bool = False
    """Whether `text` is an HTML page, which the stage `extract` turns into its main content."""
    language: str = ""
    """Set by the stage `language`."""


@dataclass
class Drop:
    """What was dropped for one reason. examples: (rank, source, excerpt), the lowest ranks of all."""

    documents: int = 0
    bytes: int = 0
    examples: list[tuple[int, str, str]] = field(default_factory=list)


class Tally:
    """What happened to a corpus's documents. Tallies of parts are merged; the order of merging does not matter.

    A reason names its stage and is one of few, such as "gopher: fewer than 50 words": never a number of the document.
    """

    def __init__(self) -> None:
        self.files = 0
        self.kept: dict[str, list[int]] = {}
        """Stage -> [documents, bytes] that left it, in the order of the stages; "read" is the first."""
        self.dropped: dict[str, Drop] = {}
        self.histograms: dict[str, Counter[str]] = {}
        """Name -> bin -> documents."""

    def keep(self, stage: str, document: Document) -> None:
        """Counts a document that leaves `stage`."""
        count = self.kept.setdefault(stage, [0, 0])
        count[0] += 1
        count[1] += utf8_length(document.text)

    def drop(self, reason: str, source: str, text: str = "") -> None:
        """Counts a document (or a file that cannot be read) as dropped; an excerpt of some is kept, chosen by hash."""
        drop = self.dropped.setdefault(reason, Drop())
        drop.documents += 1
        drop.bytes += utf8_length(text)
        rank = int.from_bytes(hashlib.blake2b(source.encode(errors="replace"), digest_size=6).digest(), "big")
        if len(drop.examples) < EXAMPLES or rank < drop.examples[-1][0]:
            excerpt = text[:_EXCERPT_CHARACTERS].encode(errors="replace").decode()
            drop.examples = sorted([*drop.examples, (rank, source, excerpt)])[:EXAMPLES]

    def observe(self, histogram: str, value: str) -> None:
        """Counts a document in a bin of a histogram."""
        self.histograms.setdefault(histogram, Counter())[value] += 1

    def merge(self, other: Tally) -> None:
        """Adds another part's tally."""
        self.files += other.files
        for stage, (documents, size) in other.kept.items():
            count = self.kept.setdefault(stage, [0, 0])
            count[0] += documents
            count[1] += size
        for reason, theirs in other.dropped.items():
            drop = self.dropped.setdefault(reason, Drop())
            drop.documents += theirs.documents
            drop.bytes += theirs.bytes
            drop.examples = sorted([*drop.examples, *theirs.examples])[:EXAMPLES]
        for name, bins in other.histograms.items():
            self.histograms.setdefault(name, Counter()).update(bins)

    def to_json(self) -> dict[str, Any]:
        """Plain values; reasons and bins sorted."""
        return {
            "files": self.files,
            "kept": self.kept,
            "dropped": {
                reason: {"documents": drop.documents, "bytes": drop.bytes, "examples": drop.examples}
                for reason, drop in sorted(self.dropped.items())
            },
            "histograms": {name: dict(sorted(bins.items())) for name, bins in sorted(self.histograms.items())},
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Tally:
        """What `to_json` gave."""
        tally = cls()
        tally.files = values["files"]
        tally.kept = {stage: list(count) for stage, count in values["kept"].items()}
        for reason, drop in values["dropped"].items():
            examples = [(rank, source, excerpt) for rank, source, excerpt in drop["examples"]]
            tally.dropped[reason] = Drop(drop["documents"], drop["bytes"], examples)
        tally.histograms = {name: Counter(bins) for name, bins in values["histograms"].items()}
        return tally

    @property
    def read(self) -> int:
        """Documents read."""
        return self.kept.get("read", [0, 0])[0]

    def __str__(self) -> str:
        def named(drop: Drop) -> str:
            return ", ".join(source for _, source, _ in drop.examples[:2]) + (", ..." if drop.documents > 2 else "")

        most = sorted(self.dropped.items(), key=lambda item: (-item[1].documents, item[0]))
        reasons = [f"{drop.documents} {reason} ({named(drop)})" for reason, drop in most[:_REASONS]]
        if len(most) > _REASONS:
            rest = sum(drop.documents for _, drop in most[_REASONS:])
            reasons.append(f"{rest} for {len(most) - _REASONS} other reasons")
        left = list(self.kept.values())[-1][0] if self.kept else 0
        counts = f"{self.files} files, {self.read} documents read, {left} kept"
        return f"{counts}; dropped: {'; '.join(reasons)}" if reasons else counts


#: Documents in, kept documents out; a reason in the tally for each that is dropped.
StageFunction = Callable[[Iterable[Document], Tally], Iterator[Document]]


def utf8_length(text: str) -> int:
    """UTF-8 bytes of `text`."""
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def logarithmic_bin(value: float) -> str:
    """The lower edge of the quarter-octave bin that holds a positive value, for histograms of sizes."""
    return f"{2 ** (math.floor(4 * math.log2(value)) / 4):.4g}" if value > 0 else "0"
