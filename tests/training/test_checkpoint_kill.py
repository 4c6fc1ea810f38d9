"""Two ranks write checkpoints as two processes and are killed at random moments: what is left is always whole."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from ctypes import c_longlong
from pathlib import Path

import pytest
import torch

from training.checkpoint import Checkpoint, CheckpointWriter, Piece, Retention, candidates
from training.checkpoint.format import step_of

KILLS = 20
NUMEL = 300_001  # odd: the ranks' shares differ
WORLD_SIZE = 2


def content(step: int) -> torch.Tensor:
    return torch.arange(NUMEL).remainder(1000).float() + step


def save_for_ever(directory, rank, first, started, completed, ready, go) -> None:  # type: ignore[no-untyped-def]
    torch.set_num_threads(1)
    if rank > 0:
        go.wait()
    writer = CheckpointWriter(directory, rank, WORLD_SIZE, retention=Retention(keep=2), deadline_seconds=60)
    ready.set()
    go.wait()
    start, stop = (NUMEL * r // WORLD_SIZE for r in (rank, rank + 1))
    piece = Piece("w", "weight", (NUMEL,), (0,), (NUMEL,), start, stop)
    step = first
    while True:
        started[rank] = step
        writer.save(step, [(piece, content(step)[start:stop])], {"step": step})
        if rank == 0:
            writer.wait()
            completed.value = step
        step += 1


@pytest.mark.timeout(180)
def test_whatever_moment_a_writer_is_killed_the_newest_checkpoint_is_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")  # torch is imported once, not in every one of forty processes
    context.set_forkserver_preload(["torch", "training.checkpoint", "tests.training.test_checkpoint_kill"])
    chance = random.Random(20)
    interrupted = 0
    newest = 0
    for kill in range(KILLS):
        started = context.Array(c_longlong, WORLD_SIZE, lock=False)  # without locks: a killed holder keeps a lock
        completed = context.Value(c_longlong, newest, lock=False)
        ready, go = context.Event(), context.Event()
        ranks = [
            context.Process(
                target=save_for_ever, args=(tmp_path, rank, newest + 1, started, completed, ready, go), daemon=True
            )
            for rank in range(WORLD_SIZE)
        ]
        for process in ranks:
            process.start()
        assert ready.wait(60)
        go.set()
        # The one sleep that cannot be an event: the moment must not depend on what the writers are doing.
        time.sleep(chance.uniform(0.02, 0.4))
        for process in chance.sample(ranks, WORLD_SIZE):
            assert process.pid is not None and process.is_alive(), f"a writer died by itself before kill {kill}"
            os.kill(process.pid, signal.SIGKILL)
        for process in ranks:
            process.join(60)
        interrupted += any(path.name.startswith(".step-") for path in tmp_path.iterdir())
        found = candidates(tmp_path)
        if completed.value:
            assert found, "a completed checkpoint is gone"
        for path in found:
            Checkpoint(path).verify()
            step = step_of(path.name) or 0
            assert torch.equal(Checkpoint(path).tensor("w"), content(step))
            assert Checkpoint(path).state == {"step": step}
        newest = (step_of(found[0].name) or 0) if found else 0
        assert completed.value <= newest <= completed.value + 1, (
            "neither the newest completed nor the one being published"
        )
        assert newest <= max(started)
    assert newest >= KILLS // 4, "hardly any checkpoint was completed: the test shows nothing"
    assert interrupted >= KILLS // 4, "hardly any kill hit a save: the test shows nothing"
    CheckpointWriter(tmp_path, 0, 1)
    assert all(step_of(path.name) for path in tmp_path.iterdir()), "the next start clears what the killed left"
