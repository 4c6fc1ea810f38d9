"""Ranks killed at random moments and while they write a checkpoint, and one that hangs: the run ends as if nothing had
happened.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from tests.faults.conftest import STEPS
from tests.faults.run_files import RunFiles, assert_same_run
from tests.faults.running import TRESTLE, Program, started

RANDOM, WRITING, HANG = "at a random moment", "while a checkpoint is being written", "stopped"
CHANCE = random.Random(5)
FAULTS = [(RANDOM, CHANCE.randrange(2)), (WRITING, 0), (WRITING, 1), (HANG, 1)]
"""What happens to which rank, in this order, each a few steps further on."""
PATIENCE = 12.0


@pytest.fixture(scope="module")
def disturbed(workplace: Path) -> RunFiles:
    """One run under Ray in which four attempts of five come to grief."""
    settings = ["--cluster.max_restarts", "1", f"--cluster.heartbeat_seconds={PATIENCE}"]
    command = [*TRESTLE, "train", "recipe.yaml", "--run.name", "disturbed", *settings]
    with started(command, workplace, workplace / "runs" / "disturbed", deadline=280) as run:
        for number, (fault, rank) in enumerate(FAULTS):
            run.wait_for_step(6 + 16 * number + CHANCE.randrange(8))
            pid = run.wait_for_ranks(2)[rank]
            if fault == RANDOM:
                os.kill(pid, signal.SIGKILL)
            elif fault == WRITING:
                kill_while_writing(run, pid)
            else:
                os.kill(pid, signal.SIGSTOP)
            run.wait_for_event("restarted", number + 1)
        run.end(0)
    return run.files


def kill_while_writing(run: Program, pid: int) -> None:
    """SIGKILL to a rank that has been stopped while the folder of an unfinished checkpoint was there."""
    while True:
        run.wait_for(run.files.half_written, "checkpoint being written")
        os.kill(pid, signal.SIGSTOP)
        if run.files.half_written():
            os.kill(pid, signal.SIGKILL)
            return
        os.kill(pid, signal.SIGCONT)  # it was just completed: wait for the next


@pytest.mark.timeout(900)
def test_killed_and_hanging_ranks_leave_no_trace_in_losses_and_weights(
    disturbed: RunFiles, undisturbed: RunFiles
) -> None:
    assert_same_run(disturbed, undisturbed)
    assert not disturbed.half_written()


def test_each_failure_is_told_with_its_rank_and_followed_by_a_restart_from_the_newest_checkpoint(
    disturbed: RunFiles,
) -> None:
    of_the_machine = ("no_standby", "straggler", "straggler_recovered")  # whether it has memory and time to spare
    told = [e["event"] for e in disturbed.events() if e["event"] not in ("checkpointed", "resumed", *of_the_machine)]
    killed = ["failed", "restarted"] * (len(FAULTS) - 1)
    assert told == ["started", *killed, "hang_report", "failed", "restarted", "finished"]
    assert disturbed.events("hang_report")[0]["rank"] == FAULTS[-1][1]
    failures = disturbed.events("failed")
    assert [e["rank"] for e in failures] == [rank for _, rank in FAULTS]
    assert [e["signal"] for e in failures[:3]] == ["SIGKILL"] * 3
    kept = 0
    for entry in disturbed.events():
        if entry["event"] == "checkpointed":
            kept = entry["step"]
        elif entry["event"] == "resumed":
            # It may have got its name without the killed rank 0 living to tell.
            assert 0 < kept <= entry["step"] <= kept + 4
    assert len(disturbed.events("resumed")) == len(FAULTS)
    assert disturbed.events("finished")[0]["step"] == STEPS
    assert disturbed.figures()[-1]["restarts"] == len(FAULTS)


def test_rank_that_is_stopped_is_found_within_its_deadline(disturbed: RunFiles) -> None:
    failure = disturbed.events("failed")[-1]
    assert "rank 1 is stopped by a signal" in failure["reason"]
    silent = float(failure["reason"].removeprefix("no progress for ").split(" s")[0])
    assert PATIENCE <= silent < PATIENCE + 5.0
