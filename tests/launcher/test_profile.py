"""`trestle profile`: traces, their figures, and a run that is as before."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.job import load_job
from launcher.run_folder import RunFolder
from tests.launcher.conftest import trestle_in
from training.trace import read_trace

WORKER = re.compile(r"^(.*?)(\.\d+)?\.pt\.trace\.json(?:\.gz)?$")
"""What TensorBoard's profiler plugin looks for (kineto, tb_plugin/torch_tb_profiler/consts.py)."""


@pytest.fixture
def run(here: Path) -> RunFolder:
    """A run's folder as `trestle train` makes it, before its first step."""
    folder = RunFolder(here / "runs" / "small")
    folder.create(load_job(here / "recipe.yaml").to_yaml(), here / "shards" / "tokenizer.model")
    return folder


def contents(folder: RunFolder) -> dict[Path, bytes | None]:
    """Everything in a run's folder, but for profiles."""
    profiles = folder.path / "profile"
    paths = [path for path in folder.path.rglob("*") if path != profiles and profiles not in path.parents]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


def test_a_trained_run_is_recorded_on_another_layout_and_stays_as_it_was(
    trained: RunFolder, workplace: Path, tmp_path: Path
) -> None:
    copy = RunFolder(tmp_path / "copy")
    shutil.copytree(trained.path, copy.path)
    before = contents(copy)
    options = ["--steps", "2", "--warmup", "1", "--json", "--parallel.zero_stage", "2", "--cluster.ranks_per_node", "2"]
    done = trestle_in(workplace)("profile", str(copy.path), *options)
    assert done.returncode == 0, done.stderr
    assert "from the checkpoint of step 4" in done.stderr
    assert contents(copy) == before
    told = json.loads(done.stdout)
    place = Path(told["place"])
    assert place.parent == copy.path / "profile" and [one["rank"] for one in told["ranks"]] == [0, 1]
    workers = []
    for one in told["ranks"]:
        assert (one["first_step"], one["steps"], one["device"]) == (6, 2, "cpu")
        events = read_trace(place / one["trace"])["traceEvents"]
        names = [e["name"] for e in events if e.get("cat") == "user_annotation"]
        assert sum(name.startswith("ProfilerStep#") for name in names) == 2 == names.count("trestle:optimizer")
        assert sum(one["phases"].values()) == pytest.approx(1.0)
        assert all(0 < one["phases"][name] < 1 for name in ("data", "forward_backward", "optimizer"))
        assert 0 < one["idle_share"] < 1 and 0 < one["communication_share"] < 1
        assert one["communication_alone_share"] <= one["communication_share"] <= 1 - one["idle_share"]
        assert {"aten::mm", "aten::copy_"} <= {row["name"] for row in one["top"]}
        assert 100e6 < one["peak_memory_bytes"] < 1.5e9
        found = WORKER.match(one["trace"])
        assert found is not None
        workers.append(found[1])
    assert [worker.rpartition("_")[2] for worker in workers] == ["0", "1"]


def test_a_run_without_a_checkpoint_is_recorded_from_its_initial_weights(run: RunFolder, here: Path) -> None:
    before = contents(run)
    options = ["--steps", "1", "--warmup", "1", "--top", "3", "--output", "seen"]
    impatient = ["--cluster.heartbeat_seconds", "0.5"]  # writing and reading a trace takes longer than that
    done = trestle_in(here)("profile", "runs/small", *options, *impatient)
    assert done.returncode == 0, done.stderr
    assert contents(run) == before and not (run.path / "profile").exists()
    shown = done.stdout
    assert "from initial weights" in shown and "steps 2 to 2, under the profiler" in shown
    heads = next(line for line in shown.splitlines() if line.startswith("rank  "))
    assert all(name in heads for name in ("idle", "communication", "forward backward", "optimizer", "peak resident"))
    assert shown.count(" aten::") + shown.count("\naten::") <= 3 and "operator (rank 0)" in shown
    (trace,) = (here / "seen").glob("*.pt.trace.json.gz")
    assert f"open seen/{trace.name}" in shown and "tensorboard --logdir seen" in shown
    assert main(["profile", "runs/small", "--output", "seen"]) == 2, "nothing is written over"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["runs/other"], "runs/other is no run's folder: it does not exist"),
        (["s3://bucket/runs/small"], "`trestle resume` fetches a run"),
        (["runs/small", "--steps", "0"], "--steps is 0; it must be at least 1"),
        (["runs/small", "--warmup", "-1"], "--warmup is -1; it must be at least 1"),
        (["runs/small", "--ranks", "0,1"], "--ranks 0,1: the run has the ranks 0 to 0"),
        (["runs/small", "--ranks", "first"], "--ranks first: name them by number, such as --ranks 0,1"),
        (["runs/small", "--model.num_layers", "3"], "model.num_layers cannot change on a resume"),
        (["runs/small", "--parallel.tensor", "2"], "use 2 ranks per node"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_named_in_one_line(
    words: list[str], why: str, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    assert main(["profile", *words]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and why in said[0], said
    assert contents(run) == before and not (run.path / "profile").exists()


def test_a_run_that_is_being_trained_is_left_alone(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with run.lock():
        assert main(["profile", str(run.path)]) == 2
    assert "is being trained by another trestle; wait for it, or stop it" in capsys.readouterr().err
    assert not (run.path / "profile").exists()
