"""Faults that raise no error: a flipped bit, a step that does not come out the same twice, a rank that is slow."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest

from tests.distributed.launch import free_port
from tests.faults.run_files import RunFiles, assert_same_run
from tests.faults.running import TORCHRUN, started

PLANTED = "tests.faults.planted_worker"


def two_ranks(name: str, *overrides: str) -> list[str]:
    ranks = ["--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={free_port()}", "--max_restarts=1"]
    return [*TORCHRUN, *ranks, "-m", PLANTED, "recipe.yaml", "--run.name", name, *overrides]


@pytest.mark.timeout(900)
def test_a_flipped_bit_and_a_slow_rank_are_named_and_leave_no_trace(workplace: Path, undisturbed: RunFiles) -> None:
    """Rank 1's bit flips before step 10, which is checked; the second attempt begins at step 8, rank 0 slow for 20."""
    planted = {"flip": {"rank": 1, "step": 10}, "slow": {"rank": 0, "steps": [20, 40], "seconds": 0.5}}
    checks = ["--training.check_replicas_every=5", "--training.straggler_factor=3", "--training.straggler_seconds=0"]
    folder = workplace / "runs" / "silent"
    command = two_ranks("silent", *checks)
    with started(command, workplace, folder, deadline=240, more={"PLANTED": json.dumps(planted)}) as run:
        output = run.end(0)
    (event,) = run.files.events("corruption")
    assert (event["rank"], event["step"]) == (1, 10) and event["node"] and "ranks" not in event
    said = f"silent corruption at step 10: rank 1 on {event['node']}: weights differ from those of the other replicas"
    assert said in output and "Traceback" not in output
    assert run.files.events("resumed")[0]["step"] == 8
    assert_same_run(run.files, undisturbed)

    # On busy cores either rank may be that slow by chance now and then; rank 0 must be by the end of its slow steps.
    changes = [e for e in run.files.events() if e["event"].startswith("straggler") and e["rank"] == 0]
    assert [e["event"] for e in changes if e["step"] <= 48][-1] == "straggler"
    assert any(e["event"] == "straggler_recovered" and e["step"] >= 48 for e in changes)
    assert f"rank 0 on {event['node']} has been" in output and "no longer slower" in output
    figures = {line["step"]: line for line in run.files.figures()}
    slow = [figures[step] for step in range(30, 48)]
    assert median(line["straggler/work_rank"] for line in slow) == 0
    assert median(line["straggler/work_factor"] for line in slow) > 3
    shares = [value for key, value in figures[80].items() if key.startswith("goodput")]
    assert sum(shares) == pytest.approx(1.0) and figures[80]["goodput/lost"] > 0 and figures[80]["goodput/check"] > 0
    assert not undisturbed.events("straggler") and not undisturbed.events("corruption")


@pytest.mark.timeout(900)
def test_a_step_that_does_not_come_out_the_same_twice_names_its_rank_and_ends_it(workplace: Path) -> None:
    planted = {"unstable": {"rank": 1, "step": 3}}
    settings = ["--training.check_recompute_every=3", "--training.stop_after=6"]
    folder = workplace / "runs" / "unstable"
    command = two_ranks("unstable", *settings)
    with started(command, workplace, folder, deadline=240, more={"PLANTED": json.dumps(planted)}) as run:
        output = run.end(0)
    (event,) = run.files.events("corruption")
    assert (event["rank"], event["step"]) == (1, 3)
    assert "rank 1" in output and "a step's losses and gradients did not come out the same twice" in output
    assert [line["step"] for line in run.files.figures()] == [1, 2, 3, 4, 5, 6]
