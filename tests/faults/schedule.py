"""Which fault happens at which step of a run: drawn from a seed, so that a run that fails can be had again. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

KILL_RANK = "kill rank"
KILL_AGENT = "kill agent"
KILL_RAYLET = "kill raylet"
STOP_RANK = "stop rank"
DELAY_RANK = "delay rank"
FILL_DISK = "fill disk"
FLIP_BYTES = "flip bytes"
DROP_STORAGE = "drop storage"

KINDS = (KILL_RANK, KILL_AGENT, KILL_RAYLET, STOP_RANK, DELAY_RANK, FILL_DISK, FLIP_BYTES, DROP_STORAGE)

HARMLESS = frozenset({DELAY_RANK, FILL_DISK, DROP_STORAGE})
"""What the ranks live through: training goes on, and nothing is started again."""


@dataclass(frozen=True)
class Fault:
    """What happens as soon as the run has completed `step`, to `rank` or to the node that it is on."""

    step: int
    kind: str
    rank: int


def schedule(seed: int, faults: int, *, gap: int, ranks: int) -> list[Fault]:
    """`faults` of them, each kind as often as any other (give or take one); order, steps and ranks are chance.

    Fault i is due at a step in [(i + 1/2) gap, (i + 1) gap): they are half a gap apart at least, and nothing happens in
    the last half gap of `(faults + 1/2) * gap` steps.
    """
    chance = random.Random(seed)
    kinds: list[str] = []
    while len(kinds) < faults:
        kinds += chance.sample(KINDS, len(KINDS))
    return [
        Fault(step=number * gap + chance.randrange(gap // 2, gap), kind=kind, rank=chance.randrange(ranks))
        for number, kind in enumerate(kinds[:faults])
    ]


def steps_for(faults: int, gap: int) -> int:
    """Steps of a run that is to live through a schedule."""
    return faults * gap + gap // 2
