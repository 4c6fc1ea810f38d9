"""What runs on the cluster for a submitted job, without a cluster: where it begins, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.jobs import read_closing_line
from launcher.in_job import RECIPE, SUBMISSION, make_ready
from launcher.job import load_job
from launcher.run_folder import RunFolder
from tests.training.checkpoints import write
from training.checkpoint.remote import RemoteFolder
from training.metrics.events import read_events
from training.recipe import anchor_shards

# The run itself is not what is looked at here: in its place, what stands in `during` happens.
STAND_IN = """
import os, signal, sys
import cluster
import cluster.supervisor

def run(command, config, *, on_event, on_output, **others):
    on_output("step 1")
    on_event({"event": "restarted", "attempt": 1, "ranks": 1, "nodes": ["here"]})
    on_output("step 2")
    return cluster.supervisor.Outcome(75, 2, "saved")

cluster.run = run
"""
TERM_AT_IMPORT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "launcher.run_folder":
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Finder())
"""
TERM_AT_THE_END = """
from launcher import supervise
supervise._goodput = lambda folder: os.kill(os.getpid(), signal.SIGTERM) or "the last words\\n"
"""
IN_JOB = "from launcher.in_job import main; sys.exit(main())"
TRAIN = "from launcher.cli import main; sys.exit(main(['train', 'recipe.yaml']))"


def python(code: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:6379"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=120
    )


@pytest.fixture
def submitted(here: Path) -> RunFolder:
    """What comes with a job whose run's folder is yet to be made, in the current directory."""
    job = load_job(here / "recipe.yaml", [f"--run.directory={here / 'runs'}"])
    anchor_shards(job.recipe)
    (here / RECIPE).parent.mkdir()
    (here / RECIPE).write_text(job.to_yaml())
    folder = RunFolder(here / "runs" / "small")
    (here / SUBMISSION).write_text(json.dumps({"job": "trestle-small-1", "folder": str(folder.path)}))
    return folder


def test_submitted_again_after_its_folder_was_lost_it_goes_on_from_the_remote_alone(
    submitted: RunFolder, here: Path
) -> None:
    (here / "store").mkdir()
    remote = f"--checkpoint.remote={here / 'store'}"
    make_ready(submitted, load_job(RECIPE, [remote]))
    submitted.events.write_text('{"event": "started", "time": "2026-01-01T00:00:00.000+00:00"}\n')
    RemoteFolder(str(here / "store"), "small").put_run_files(submitted.path)
    write(here / "store" / "small" / "checkpoints", 2)
    shutil.rmtree(here / "runs")

    make_ready(submitted, load_job(RECIPE, [remote, "--training.steps=9"]))
    made = load_job(submitted.path).recipe
    assert (made.run.directory, made.training.steps) == (str(here / "runs"), 9)
    assert submitted.tokenizer.read_bytes() == (here / "shards" / "tokenizer.model").read_bytes()
    assert [event["event"] for event in read_events(submitted.events)] == ["started", "changed"]
    make_ready(submitted, load_job(RECIPE, [remote, "--training.steps=9"]))  # its first attempt had saved nothing here


def test_stop_while_it_is_still_importing_has_a_closing_line(submitted: RunFolder) -> None:
    done = python(TERM_AT_IMPORT + IN_JOB)
    assert done.returncode == 75, done.stderr
    assert done.stderr == "trestle: stopped before the ranks had started; submit it again to continue\n"
    assert read_closing_line(done.stdout) == {"exit_code": 75, "checkpoint": None}


def test_stop_when_the_ranks_have_ended_changes_nothing(submitted: RunFolder) -> None:
    done = python(STAND_IN + TERM_AT_THE_END + IN_JOB)
    assert done.returncode == 75, done.stderr
    assert "trestle: saved\nthe last words\n" in done.stdout
    assert read_closing_line(done.stdout) == {"exit_code": 75, "checkpoint": None}


def test_reader_of_the_output_that_goes_away_does_not_end_the_run(here: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = python(STAND_IN + TRAIN, stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (75, "")
    assert [event["event"] for event in read_events(here / "runs" / "small" / "events.jsonl")] == ["restarted"]
