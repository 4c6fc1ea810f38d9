"""From all checked pairs to those that are trained on and those that are held out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.pairs.prepare.check import held_out_fraction
from data_pipeline.pairs.prepare.duplicates import Duplicates
from data_pipeline.pairs.prepare.pictures import Unfit, examine, thumbnail
from data_pipeline.pairs.prepare.reading import TALLY, Part, write_tally
from data_pipeline.pairs.prepare.store import StoredPair, read_pairs, read_pictures
from data_pipeline.pairs.prepare.tally import KEPT_EXAMPLES, PairTally, add_example
from data_pipeline.pairs.recipe import PairCorpusConfig, PairPrepareConfig
from data_pipeline.prepare.runner import Runner, Task

COPY = "copies: a picture that has come before"
NEAR_COPY = "near copies: a picture that looks like one before"
TRAINING, HELD_OUT = "training.npy", "held-out.npy"
_COUNTS = "counts.json"


@dataclass(frozen=True)
class Selected:
    """What is left of a part. chosen: bool for each pair of it. sizes: pairs, bytes of pictures, bytes of captions."""

    corpus: PairCorpusConfig
    part: Path
    training: Path
    held_out: Path
    tally: Path
    training_size: tuple[int, int, int]
    held_out_size: tuple[int, int, int]


def select(runner: Runner, config: PairPrepareConfig, parts: Sequence[Part], found: Duplicates) -> list[Selected]:
    """Leaves copies out and holds a share of the rest out: a picture and what looks like it are on one side."""
    tasks = [
        Task(
            {
                "part": str(part.folder),
                "fraction": held_out_fraction(config, part.corpus),
                "outcome": str(outcome),
                "exact": config.deduplicate.exact,
                "perceptual": config.deduplicate.perceptual,
                "max_pixels": config.max_pixels,
            }
        )
        for part, outcome in zip(parts, found.outcomes, strict=True)
    ]
    selected = []
    for part, folder in zip(parts, runner.map("select", select_part, tasks), strict=True):
        counts = json.loads((folder / _COUNTS).read_text())
        files = (folder / TRAINING, folder / HELD_OUT, folder / TALLY)
        sizes = (tuple(counts[TRAINING]), tuple(counts[HELD_OUT]))
        selected.append(Selected(part.corpus, part.folder, *files, *sizes))
    return selected


def select_part(
    folder: Path, *, part: str, fraction: float, outcome: str, exact: bool, perceptual: bool, max_pixels: int
) -> None:
    """One part. outcome: of `duplicates.mark`."""
    tally = PairTally()
    source = Path(part)
    copies, near, kept = (np.load(Path(outcome) / name) for name in ("exact.npy", "near.npy", "kept_copy.npy"))
    drawn = is_held_out(np.load(Path(outcome) / "group_keys.npy"), fraction)
    chosen = {TRAINING: np.zeros(len(copies), dtype=bool), HELD_OUT: np.zeros(len(copies), dtype=bool)}
    counts = {TRAINING: [0, 0, 0], HELD_OUT: [0, 0, 0]}
    tally.kept = {"copies": [0, 0], "near copies": [0, 0]}
    for number, pair in read_pairs(source):
        shows = shown_pair(source, pair, max_pixels)
        if copies[number] and exact:
            tally.drop(COPY, pair.key, pair.source, pair.caption, shows, int(kept[number]))
            continue
        tally.keep("copies", pair.size)
        if (near[number] or copies[number]) and perceptual:
            tally.drop(NEAR_COPY, pair.key, pair.source, pair.caption, shows, int(kept[number]))
            continue
        tally.keep("near copies", pair.size)
        add_example(tally.examples, KEPT_EXAMPLES, pair.key, pair.source, pair.caption, shows)
        side = HELD_OUT if drawn[number] else TRAINING
        chosen[side][number] = True
        size = (1, pair.size, len(pair.caption.encode()))
        counts[side] = [a + b for a, b in zip(counts[side], size, strict=True)]
    for name, mask in chosen.items():
        np.save(folder / name, mask)
    (folder / _COUNTS).write_text(json.dumps(counts))
    write_tally(folder / TALLY, tally)


def is_held_out(keys: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """Whether the pairs belong to the held-out part, by the keys [n] of the first pictures of their groups."""
    return keys < np.uint64(min(int(fraction * 2**64), 2**64 - 1))


def shown_pair(part: Path, pair: StoredPair, max_pixels: int) -> Callable[[], bytes | None]:
    """A thumbnail of a stored pair, made when it is called for."""

    def show() -> bytes | None:
        (content,) = read_pictures(part, [pair])
        try:
            return thumbnail(examine(content, max_pixels))
        except Unfit:
            return None

    return show
