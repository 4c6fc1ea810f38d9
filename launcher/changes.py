"""What a resume may change. Everything else makes another run, and is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from launcher.errors import UserError
from training.sections import Document

ALLOWED = {
    "parallel": "the layout",
    "cluster": "the nodes and ranks",
    "batch": "the batch sizes",
    "data": "where the same shards lie, and reading ahead; with --data.allow-change other shards, weights, curriculum",
    "training": "length, precision apart, and how often to look",
    "optimizer.lr": "the learning rate",
    "optimizer.schedule": "its course",
    "optimizer.warmup": "its warm-up",
    "optimizer.decay": "its end",
    "optimizer.min_lr_ratio": "its floor",
    "evaluation": "what is measured of a model of pictures and texts",
    "checkpoint": "when checkpoints are written and which are kept",
}
"""Key or section -> what it is, for the help."""

REFUSED = {
    "model": "the checkpoint holds another model",
    "run.seed": "initial weights, dropout and the order of the data come from it",
    "run.name": "the folder is the run; move or rename the folder instead",
    "run.directory": "the folder is the run; move the folder instead",
    "training.precision": "the losses would no longer be those of this run",
    "data.document_masks": "the losses would no longer be those of this run",
    "optimizer": "the moments in the checkpoint were made with the old value",
}
"""Key or section -> why it cannot change."""

PERMISSION = "data.allow_change"
"""Given for one resume: the next begins without it."""

_SIZES = ("parallel", "cluster.nodes", "cluster.ranks_per_node")


@dataclass(frozen=True)
class Change:
    """One key whose value differs."""

    key: str
    old: Any
    new: Any

    @property
    def resizes(self) -> bool:
        """Whether it changes the number of ranks or what they hold."""
        return _within(self.key, _SIZES)


def changes(old: Document, new: Document) -> list[Change]:
    """The keys that differ, in order; lists count as one value. Raises UserError for one that must not change."""
    found = [
        Change(f"{section}.{key}", old.get(section, {}).get(key), value)
        for section, values in new.items()
        for key, value in values.items()
        if old.get(section, {}).get(key) != value
    ]
    for change in found:
        if _within(change.key, tuple(REFUSED)) and not _within(change.key, _exceptions()):
            raise UserError(
                f"{change.key} cannot change on a resume ({_show(change.old)} -> {_show(change.new)}): "
                f"{_why(change.key)}; leave it, or start another run with `trestle train`"
            )
    return found


def events(found: list[Change]) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """The events that tell of the changes: ("resized" or "changed", key -> old and new)."""
    by_kind: dict[str, dict[str, dict[str, Any]]] = {}
    for change in found:
        kind = "resized" if change.resizes else "changed"
        if change.key == PERMISSION:  # what is done with it is told: what the data were, and what they are
            continue
        by_kind.setdefault(kind, {})[change.key] = {"old": change.old, "new": change.new}
    return list(by_kind.items())


def help_text() -> str:
    """What may change and what may not, for `trestle resume --help`."""
    allowed = "\n".join(f"  {key:22} {what}" for key, what in ALLOWED.items())
    refused = "\n".join(f"  {key:22} {why}" for key, why in REFUSED.items())
    return f"may change:\n{allowed}\nmust not change (unless named above):\n{refused}"


def _exceptions() -> tuple[str, ...]:
    return tuple(key for key in ALLOWED if "." in key)


def _within(key: str, places: tuple[str, ...]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def _why(key: str) -> str:
    nearest = max((place for place in REFUSED if _within(key, (place,))), key=len)
    return REFUSED[nearest]


def _show(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
