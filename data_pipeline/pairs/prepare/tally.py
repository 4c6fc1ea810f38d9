"""What became of a corpus's pairs: counts, reasons, and a few examples of each with a thumbnail."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

#: Dropped pairs of which a tally keeps an example, for each reason; and kept ones.
EXAMPLES, KEPT_EXAMPLES = 12, 24
_CAPTION_CHARACTERS = 300
_REASONS = 4  # that a line names


@dataclass(frozen=True, order=True)
class Example:
    """A pair for people. rank: by hash of the key; picture: a JPEG in base64, "" if there is none to show."""

    rank: int
    source: str
    caption: str
    picture: str = ""
    of: int = -1
    """Of a copy, the id of the pair that is kept instead."""


@dataclass
class Drop:
    """What was dropped for one reason."""

    pairs: int = 0
    examples: list[Example] = field(default_factory=list)


class PairTally:
    """What happened to a corpus's pairs. Tallies of parts are merged; the order of merging does not matter.

    A reason names its stage and is one of few, such as "caption: empty": never a number of the pair.
    """

    def __init__(self) -> None:
        self.files = 0
        self.kept: dict[str, list[int]] = {}
        """Stage -> [pairs, bytes of pictures] that left it, in the order of the stages."""
        self.dropped: dict[str, Drop] = {}
        self.examples: list[Example] = []
        """Of the pairs that were kept to the end."""
        self.histograms: dict[str, Counter[str]] = {}
        """Name -> bin -> pairs."""

    def keep(self, stage: str, size: int = 0) -> None:
        """Counts a pair that leaves `stage`; size: bytes of its picture, where they are known."""
        count = self.kept.setdefault(stage, [0, 0])
        count[0] += 1
        count[1] += size

    def drop(
        self,
        reason: str,
        key: str,
        source: str,
        caption: str,
        picture: Callable[[], bytes | None] = lambda: None,
        of: int = -1,
    ) -> None:
        """Counts a pair as dropped. picture: called for a thumbnail if this pair becomes an example."""
        drop = self.dropped.setdefault(reason, Drop())
        drop.pairs += 1
        add_example(drop.examples, EXAMPLES, key, source, caption, picture, of)

    def observe(self, histogram: str, value: str) -> None:
        """Counts a pair in a bin of a histogram."""
        self.histograms.setdefault(histogram, Counter())[value] += 1

    def merge(self, other: PairTally) -> None:
        """Adds another part's tally."""
        self.files += other.files
        for stage, (pairs, size) in other.kept.items():
            count = self.kept.setdefault(stage, [0, 0])
            count[0] += pairs
            count[1] += size
        for reason, theirs in other.dropped.items():
            drop = self.dropped.setdefault(reason, Drop())
            drop.pairs += theirs.pairs
            drop.examples = sorted([*drop.examples, *theirs.examples])[:EXAMPLES]
        self.examples = sorted([*self.examples, *other.examples])[:KEPT_EXAMPLES]
        for name, bins in other.histograms.items():
            self.histograms.setdefault(name, Counter()).update(bins)

    def to_json(self) -> dict[str, Any]:
        """Plain values; reasons and bins sorted."""
        return {
            "files": self.files,
            "kept": self.kept,
            "dropped": {reason: asdict(drop) for reason, drop in sorted(self.dropped.items())},
            "examples": [asdict(example) for example in self.examples],
            "histograms": {name: dict(sorted(bins.items())) for name, bins in sorted(self.histograms.items())},
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PairTally:
        """What `to_json` gave."""
        tally = cls()
        tally.files = values["files"]
        tally.kept = {stage: list(count) for stage, count in values["kept"].items()}
        for reason, drop in values["dropped"].items():
            tally.dropped[reason] = Drop(drop["pairs"], [Example(**example) for example in drop["examples"]])
        tally.examples = [Example(**example) for example in values["examples"]]
        tally.histograms = {name: Counter(bins) for name, bins in values["histograms"].items()}
        return tally

    def __str__(self) -> str:
        def named(drop: Drop) -> str:
            return ", ".join(example.source for example in drop.examples[:2]) + (", ..." if drop.pairs > 2 else "")

        most = sorted(self.dropped.items(), key=lambda item: (-item[1].pairs, item[0]))
        reasons = [f"{drop.pairs} {reason} ({named(drop)})" for reason, drop in most[:_REASONS]]
        if len(most) > _REASONS:
            rest = sum(drop.pairs for _, drop in most[_REASONS:])
            reasons.append(f"{rest} for {len(most) - _REASONS} other reasons")
        counts = [pairs for pairs, _ in self.kept.values()] or [0]
        told = f"{self.files} files, {counts[0]} pairs found, {counts[-1]} kept"
        return f"{told}; dropped: {'; '.join(reasons)}" if reasons else told


def add_example(
    examples: list[Example],
    most: int,
    key: str,
    source: str,
    caption: str,
    picture: Callable[[], bytes | None],
    of: int = -1,
) -> None:
    """Puts the pair among the examples if it is one of the `most` of lowest rank."""
    rank = int.from_bytes(hashlib.blake2b(key.encode(errors="replace"), digest_size=6).digest(), "big")
    if len(examples) < most or rank < examples[-1].rank:
        shown = picture()
        small = base64.b64encode(shown).decode() if shown else ""
        text = caption[:_CAPTION_CHARACTERS].encode(errors="replace").decode()
        examples[:] = sorted([*examples, Example(rank, source, text, small, of)])[:most]
