"""A run's checkpoints: the newest save is in place or the run says that it is not, whatever storage does meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from tests.distributed.launch import run
from tests.training.checkpoints import share, write
from training import saving
from training.checkpoint import Checkpoint, SaveFailed
from training.config import CheckpointConfig
from training.metrics import EventLog
from training.metrics.events import read_events
from training.position import Position
from training.saving import RunCheckpoints

DEADLINE = 30.0


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The only rank of a group, whose checkpoints say nothing of a recipe."""
    monkeypatch.setattr(saving, "state_of", lambda *_: {})
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Storage takes nothing in before this is set: each flush waits, as on a mount that is away."""
    event, flush = threading.Event(), os.fsync

    def held_up(descriptor: int) -> None:
        assert event.wait(DEADLINE)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", held_up)
    return event


def checkpoints(folder: Path, **options: Any) -> RunCheckpoints:
    return RunCheckpoints(folder, "demo", CheckpointConfig(**options), EventLog(folder / "events.jsonl"))


def save(into: RunCheckpoints, step: int, **options: Any) -> None:
    engine: Any = SimpleNamespace(pieces=lambda: share(0, 1, step))
    recipe: Any = SimpleNamespace(data=SimpleNamespace(on_damaged="stop"))
    stream: Any = None
    into.save(engine, Position(step=step), stream, recipe, **options)


def told(folder: Path, event: str) -> list[Any]:
    return [one.get("step") for one in read_events(folder / "events.jsonl") if one["event"] == event]


def test_newest_save_left_out_is_not_forgotten_when_an_older_one_comes_late(
    tmp_path: Path, answers: threading.Event
) -> None:
    run = checkpoints(tmp_path, busy_seconds=0.05)
    save(run, 5)
    save(run, 10)
    answers.set()
    with pytest.raises(SaveFailed, match="step 10 is left out"):
        run.finish()
    assert told(tmp_path, "checkpointed") == [5]
    save(run, 15)
    run.finish()
    assert told(tmp_path, "checkpointed") == [5, 15]


def test_save_that_no_other_follows_waits_for_storage_and_beats(tmp_path: Path, answers: threading.Event) -> None:
    run = checkpoints(tmp_path, busy_seconds=0.0)
    save(run, 5)
    save(run, 10, beat=answers.set, needed=True)  # the first beat lets storage answer
    run.finish()
    assert told(tmp_path, "checkpointed")[-1] == 10
    assert told(tmp_path, "checkpoint_failed") == []


def test_end_of_a_run_beats_while_storage_holds_its_last_checkpoint(tmp_path: Path, answers: threading.Event) -> None:
    run = checkpoints(tmp_path)
    save(run, 5)
    run.finish(answers.set)
    assert told(tmp_path, "checkpointed") == [5]


def test_save_that_is_waited_for_beats(tmp_path: Path, answers: threading.Event) -> None:
    run = checkpoints(tmp_path, asynchronous=False)
    save(run, 5, beat=answers.set)
    assert told(tmp_path, "checkpointed") == [5]


def test_rank_that_was_not_told_of_a_failed_save_does_not_hold_up_the_next_one(tmp_path: Path) -> None:
    run("tests.training.saving_rank:save_twice", 2, str(tmp_path), deadline=110)
    assert told(tmp_path, "checkpointed") == [10]
    assert len(told(tmp_path, "checkpoint_failed")) == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


def test_newest_checkpoint_that_was_damaged_is_announced_when_it_is_saved_again(tmp_path: Path) -> None:
    write(tmp_path / "checkpoints", 10, 20, world_size=1)
    data = tmp_path / "checkpoints" / "step-00000020" / "rank-00000.safetensors"
    data.write_bytes(data.read_bytes()[:-1])
    run = checkpoints(tmp_path)
    found = run.resume_point()
    assert found is not None
    assert (found.step, run.last_verified) == (10, 10)
    save(run, 20)
    run.finish()
    assert (told(tmp_path, "checkpointed"), run.last_verified) == ([20], 20)


def test_run_without_checkpoints_here_goes_back_to_the_newest_in_the_second_home(tmp_path: Path) -> None:
    folder, store = tmp_path / "run", tmp_path / "store"
    folder.mkdir()
    write(store / "demo" / "checkpoints", 10, 20, world_size=1)
    run = checkpoints(folder, remote=str(store))
    found = run.before(1)
    assert found is not None
    assert found.step == 20
    save(run, 20)  # as the run does at once: what the second home has under this name is replaced
    run.finish()
    digest = Path("checkpoints", "step-00000020", "manifest.json.sha256")
    assert (store / "demo" / digest).read_bytes() == (folder / digest).read_bytes()
    Checkpoint(store / "demo" / digest.parent).verify()
