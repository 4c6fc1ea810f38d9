"""Which setting to try next for a row of the GPU table: a small search over micro-batch, recomputation and compilation.

Pure: it knows what has been tried and what the planner says fits, so that an interrupted table goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

OK, MEMORY, DEADLINE = "ok", "out of memory", "deadline"
ENOUGH = 8
"""Samples in a micro-batch that fill a GPU at 2048 tokens: recomputation, which buys room for more, can only cost."""


@dataclass(frozen=True)
class Setting:
    """How a model is run."""

    micro_batch_size: int
    recompute: str = "none"
    compile: bool = True
    offload: bool = False
    """The optimizer's state and step on the host."""


Tried = dict[str, Any]
"""A try as the results hold it: the fields of its setting, `status`, and the figures if that is `ok`."""

ARMS: tuple[tuple[str, bool, bool], ...] = (  # recompute, compile, offload: in the order in which they are hoped for
    ("none", True, False),
    ("selective", False, False),
    ("full", True, False),
    ("none", False, False),
    ("full", False, False),
    ("full", True, True),
)


def best(tries: Sequence[Tried], by: str) -> Tried | None:
    """The fastest of the tries that worked, by the figure `by`."""
    return max((one for one in tries if one["status"] == OK), key=lambda one: one[by], default=None)


def telling(tries: Sequence[Tried], deadline: float) -> list[Tried]:
    """The tries that show something: not those that were stopped before the `deadline` (seconds) that one has now,
    because a budget was used up or the deadline was shorter then.
    """
    return [one for one in tries if one["status"] != DEADLINE or one["process_seconds"] >= deadline]


def next_setting(
    tries: Sequence[Tried], fits: Callable[[Setting], bool], largest: int, enough: int = ENOUGH
) -> Setting | None:
    """What to try after `tries` of one model; None when there is nothing left worth it.

    An arm begins with the largest micro-batch (a power of two times a divisor of `largest`) that `fits`, halves it for
    as long as memory does not suffice, and looks once at half of what worked.
    """
    for recompute, compiled, offload in ARMS:
        kind = (recompute, compiled, offload)
        arm = [one for one in tries if (one["recompute"], one["compile"], one["offload"]) == kind]
        if not arm and _in_vain(tries, recompute, compiled, offload, enough):
            continue
        size = _next_size(arm, partial(_fits, fits, kind), largest)
        if size is not None:
            return Setting(size, *kind)
    return None


def _in_vain(tries: Sequence[Tried], recompute: str, compiled: bool, offload: bool, enough: int) -> bool:
    """Whether what others have shown makes an arm not worth its time."""
    worked = [one for one in tries if one["status"] == OK]
    if offload:
        return bool(worked)  # it costs more than anything else: only where nothing else fits
    if compiled and any(one["compile"] and one["status"] not in (OK, MEMORY) for one in tries):
        return True  # no compiler, or it fails
    if not compiled and recompute != "selective" and any(one["compile"] for one in worked):
        return True
    roomy = any(one["recompute"] == "none" and one["micro_batch_size"] >= enough for one in worked)
    return recompute != "none" and roomy


def _fits(fits: Callable[[Setting], bool], kind: tuple[str, bool, bool], size: int) -> bool:
    return fits(Setting(size, *kind))


def _next_size(arm: Sequence[Tried], fits: Callable[[int], bool], largest: int) -> int | None:
    if not arm:
        size = largest
        while size > 1 and not fits(size):
            size = size // 2 if size % 2 == 0 else 1
        return size if fits(size) else None
    smallest = min(arm, key=lambda one: one["micro_batch_size"])
    size = smallest["micro_batch_size"]
    worked = [one for one in arm if one["status"] == OK]
    if size % 2 or smallest["status"] not in (OK, MEMORY) or len(worked) > 1:
        return None
    return size // 2
