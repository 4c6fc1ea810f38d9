"""One of two ranks that save while their storage goes away and comes back.

Rank 0 fails while it is away and can leave no word; rank 1 begins when it is back, and finds none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from tests.training.checkpoints import share
from training import saving
from training.checkpoint import Piece
from training.config import CheckpointConfig
from training.metrics import EventLog
from training.position import Position


def save_twice(where: str) -> None:
    """In the run's folder `where`."""
    rank, folder = dist.get_rank(), Path(where)
    saving.state_of = lambda *_: {}
    events = EventLog(folder / "events.jsonl")
    run = saving.RunCheckpoints(folder, "demo", CheckpointConfig(busy_seconds=0.0), events)
    elsewhere = run.directory.with_name("unreachable")

    def pieces_of(step: int) -> Iterator[tuple[Piece, torch.Tensor]]:
        if step == 5 and rank == 1:
            while not (folder / "back").exists():
                time.sleep(0.01)  # the other process says when
        return iter(share(rank, 2, step))

    def save(step: int, **options: Any) -> None:
        engine: Any = SimpleNamespace(pieces=lambda: pieces_of(step))
        recipe: Any = SimpleNamespace(data=SimpleNamespace(on_damaged="stop"))
        stream: Any = None
        run.save(engine, Position(step=step), stream, recipe, **options)

    if rank == 0:
        run.directory.rename(elsewhere)
        run.directory.touch()
    save(5)
    if rank == 0:
        assert run._writer.settles(30.0)
        run.directory.unlink()
        elsewhere.rename(run.directory)
        (folder / "back").touch()
    begun = time.monotonic()
    save(10)  # not left out, although nothing is waited for: the others are told that the save before has failed
    run.finish()
    assert run.last_verified == 10
    assert time.monotonic() - begun < 60
