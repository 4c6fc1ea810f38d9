"""SIGTERM and Ctrl-C: finish the step, save, say "resume me"; resumed, the run is the one that was never stopped."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.distributed.launch import free_port
from tests.faults.conftest import STEPS
from tests.faults.run_files import RunFiles, assert_same_run
from tests.faults.running import TORCHRUN, TRESTLE, WORKER, started

RESUME_ME = 75


@pytest.mark.timeout(900)
def test_a_run_stopped_by_sigterm_and_then_by_ctrl_c_is_resumed_as_if_never_stopped(
    workplace: Path, undisturbed: RunFiles
) -> None:
    folder = workplace / "runs" / "stopped"
    with started([*TRESTLE, "train", "recipe.yaml", "--run.name", "stopped"], workplace, folder) as run:
        run.wait_for_step(10)
        run.signal(signal.SIGTERM)
        output = run.end(RESUME_ME)
    first = saved_after_the_last_step(run.files, at_least=10)
    assert "resume runs/stopped" in output
    with started([*TRESTLE, "resume", "runs/stopped"], workplace, folder) as run:
        run.wait_for_step(first + 9)
        run.interrupt()
        run.end(RESUME_ME)
    second = saved_after_the_last_step(run.files, at_least=first + 9)
    with started([*TRESTLE, "resume", "runs/stopped"], workplace, folder) as run:
        run.end(0)
    assert [e["step"] for e in run.files.events("resumed")] == [first, second]
    stops = run.files.events("preempted")
    assert [(e["signal"], e["saved"], e["step"]) for e in stops] == [("SIGTERM", True, first), ("SIGINT", True, second)]
    assert not run.files.events("failed")
    assert_same_run(run.files, undisturbed)


def saved_after_the_last_step(files: RunFiles, at_least: int) -> int:
    """The step at which the run has stopped: well before its end, and with a verified checkpoint of that very step."""
    step = files.last_step()
    assert at_least <= step < STEPS - 10
    assert files.newest().step == step
    files.newest().verify()
    return step


@pytest.mark.timeout(900)
def test_one_rank_without_a_supervisor_stops_saves_and_continues(workplace: Path, undisturbed_alone: RunFiles) -> None:
    folder = workplace / "runs" / "alone"
    command = [*WORKER, "recipe.yaml", "--run.name", "alone"]
    with started(command, workplace, folder) as run:
        run.wait_for_step(10)
        run.signal(signal.SIGTERM)
        run.end(RESUME_ME)
    step = saved_after_the_last_step(run.files, at_least=10)
    with started(command, workplace, folder) as run:
        assert f"resuming from step {step}" in run.end(0)
    assert_same_run(run.files, undisturbed_alone)


@pytest.mark.timeout(900)
def test_torchrun_trains_the_very_same_run_as_trestle_train(workplace: Path, undisturbed: RunFiles) -> None:
    folder = workplace / "runs" / "torchrun"
    ranks = ["--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    command = [*TORCHRUN, *ranks, "-m", "training.worker", "recipe.yaml", "--run.name", "torchrun"]
    with started(command, workplace, folder) as run:
        run.end(0)
    assert_same_run(run.files, undisturbed)
