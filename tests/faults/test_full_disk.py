"""A disk that takes no more while checkpoints are written: training goes on, and nothing half-written looks whole.

A limit on the size of files that a rank may write stands for the full disk: the same errors from the same calls, but
set and lifted at a chosen moment, on one rank, without privileges.
"""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from tests.distributed.launch import free_port, rank_environment
from tests.faults.conftest import STEPS
from tests.faults.run_files import RunFiles, assert_same_run
from tests.faults.running import TRESTLE, WORKER, started
from training.checkpoint import Checkpoint, candidates
from training.checkpoint import format as fmt
from training.checkpoint.meeting import Meeting

ENOUGH_FOR_FIGURES_ONLY = 150_000
"""Bytes: below a rank's part of a checkpoint, above its metrics and log."""


ENOUGH_FOR_HEARTBEATS_ONLY = 64


def fill_disk(pid: int, room: int = ENOUGH_FOR_FIGURES_ONLY) -> None:
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (room, hard))


def free_disk(pid: int) -> None:
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.timeout(900)
def test_full_disk_costs_checkpoints_but_not_the_training_and_is_told_in_one_line_each(
    workplace: Path, undisturbed: RunFiles
) -> None:
    folder = workplace / "runs" / "full"
    command = [*TRESTLE, "train", "recipe.yaml", "--run.name", "full", "--cluster.max_restarts", "0"]
    with started(command, workplace, folder, deadline=240) as run:
        ranks = run.wait_for_ranks(2)
        fill_disk(ranks[1])
        run.wait_for_event("checkpoint_failed")
        free_disk(ranks[1])
        run.wait_for_event("checkpointed")
        fill_disk(ranks[0])
        output = run.end(1)
    assert run.files.last_step() == STEPS, "training did not go on"
    failed = run.files.events("checkpoint_failed")
    assert failed[0]["reason"].startswith("the checkpoint of step 4 was not written: rank 1: ")
    assert f"the checkpoint of step {STEPS} was not written: File too large" in failed[-1]["reason"]
    assert "Traceback" not in output and "Traceback" not in "".join(
        path.read_text() for path in sorted((folder / "logs").iterdir())
    )
    for event in failed:
        end = "" if event is failed[-1] else "; training goes on"
        assert output.count(event["reason"]) == 1 and f"trestle: {event['reason']}{end}\n" in output
    newest = run.files.steps_saved()[-1]
    assert failed[-1]["reason"].endswith(f"step {newest} is still good")

    saved = candidates(run.files.checkpoints)
    assert saved and not run.files.half_written()
    assert {path.name for path in run.files.checkpoints.iterdir() if path.name.startswith("step-")} == {
        path.name for path in saved
    }
    for path in saved:
        Checkpoint(path).verify()

    with started([*TRESTLE, "resume", "runs/full"], workplace, folder) as run:
        run.end(0)
    assert run.files.events("resumed")[-1]["step"] == newest
    assert_same_run(run.files, undisturbed)


@pytest.mark.timeout(900)
def test_disk_that_takes_neither_figures_nor_events_nor_the_log_costs_nothing_once_it_has_room(
    workplace: Path, undisturbed_alone: RunFiles, tmp_path: Path
) -> None:
    folder, heartbeat = workplace / "runs" / "full-alone", tmp_path / "heartbeat"
    rank = rank_environment(0, 1, free_port()) | {"TRESTLE_HEARTBEAT": str(heartbeat)}
    with started([*WORKER, "recipe.yaml", "--run.name", "full-alone"], workplace, folder, more=rank) as run:
        run.wait_for_event("checkpointed", 2)
        pid = run.process.pid
        fill_disk(pid, ENOUGH_FOR_HEARTBEATS_ONLY)
        begun = int(heartbeat.read_text())
        run.wait_for(lambda: int(heartbeat.read_text()) >= begun + 10, "ten steps on a full disk")
        assert run.files.last_step() <= begun + 1, "the figures got through"
        free_disk(pid)
        output = run.end(0)
    assert_same_run(run.files, undisturbed_alone)
    assert "File too large" in run.files.events("checkpoint_failed")[0]["reason"]
    assert output.count("figures cannot be written") == output.count("figures are written again") == 1
    assert output.count("events cannot be written") == 1
    assert "Traceback" not in output and "Exception" not in output


def test_rank_0_finds_room_to_tell_the_others_that_it_gave_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (Meeting(tmp_path, rank, 2, 4, 1, 1.0) for rank in range(2))
    first.open()
    second.open()
    write = fmt.write_hashed

    def only_without_the_partial_folder(path: Path, *parts: bytes | memoryview) -> dict[str, object]:
        if first.partial.exists():
            path.touch()  # a name costs nothing
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, *parts)

    monkeypatch.setattr(fmt, "write_hashed", only_without_the_partial_folder)
    first.give_up("the disk is full")
    assert second.refused() == "the disk is full"
    assert [path.name for path in tmp_path.iterdir()] == [first.refusal.name]
