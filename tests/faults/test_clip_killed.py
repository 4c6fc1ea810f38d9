"""A rank of a CLIP's run that is killed: the run ends as if nothing had happened, crops and dropout included."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.distributed.clip_runs import write_digits, write_recipe
from tests.distributed.launch import run
from tests.faults.run_files import RunFiles, assert_same_weights
from tests.faults.running import TRESTLE, started

STEPS = 60
SETTINGS = ["--data.validation=[]", f"--training.steps={STEPS}", "--checkpoint.every=4"]
SAME = ("loss", "grad_norm", "learning_rate", "parameter_norm", "logit_scale", "samples", "epochs/digits")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    write_digits(folder, training=100, held_out=4)
    write_recipe(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(workplace: Path) -> RunFiles:
    """Two ranks without a supervisor, from the first step to the last."""
    folder = workplace / "runs" / "undisturbed"
    planned = [{"recipe": str(workplace / "recipe.yaml"), "folder": str(folder), "overrides": SETTINGS}]
    assert run("tests.distributed.runs:train_runs", 2, planned, deadline=120) == [[True]] * 2
    return RunFiles(folder)


@pytest.mark.timeout(900)
def test_a_killed_rank_leaves_no_trace_in_losses_and_weights(workplace: Path, undisturbed: RunFiles) -> None:
    command = [*TRESTLE, "train", "recipe.yaml", "--run.directory=runs", "--cluster.ranks_per_node=2", *SETTINGS]
    with started(command, workplace, workplace / "runs" / "test", deadline=150) as disturbed:
        disturbed.wait_for_step(6)
        os.kill(disturbed.wait_for_ranks(2)[1], signal.SIGKILL)
        disturbed.wait_for_event("restarted")
        disturbed.end(0)
    files = disturbed.files
    (failed,), (resumed,) = files.events("failed"), files.events("resumed")
    assert failed["rank"] == 1 and failed["signal"] == "SIGKILL" and 0 < resumed["step"] < STEPS
    mine, theirs = files.figures(), undisturbed.figures()
    assert [line["step"] for line in mine] == [line["step"] for line in theirs] == list(range(1, STEPS + 1))
    for line, other in zip(mine, theirs, strict=True):
        assert {key: line[key] for key in SAME} == {key: other[key] for key in SAME}
    assert_same_weights(files.newest(), undisturbed.newest())
    assert not files.half_written()
