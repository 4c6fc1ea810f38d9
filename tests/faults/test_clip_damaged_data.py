"""Pictures and tars of a CLIP's shards that are damaged: replaced, counted and told where that is allowed, and the same
on any number of ranks; otherwise an error that names the file.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.pairs.stream import PairStream
from launcher.cli import main
from launcher.run_folder import RunFolder
from tests.data_pipeline.pair_sets import mix, write_merges, write_pairs
from tests.distributed.clip_runs import RECIPE
from tests.distributed.launch import run
from tests.faults.running import WORKER, started
from training.metrics.events import read_events

PAIRS, BATCH, STEPS, SEED = 120, 16, 2, 7
BROKEN_SAMPLES = (3, 9, 30)
"""Of the samples that the steps consume; what is read ahead of them meets no other."""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, in tars of 16: `good`, `bad` with pictures that break off in it, `torn` with a tar that does."""
    folder = tmp_path_factory.mktemp("damaged")
    sha256 = write_merges(folder / "merges.txt")
    write_pairs(folder / "web", PAIRS, sha256=sha256)
    stream = PairStream(mix(folder, {"web": 1}), SEED, image_size=24, context_length=24)
    _, broken = stream.locate(np.array(BROKEN_SAMPLES))
    stream.close()
    (folder / "bad").mkdir()
    write_pairs(folder / "bad" / "web", PAIRS, sha256=sha256, broken=broken.tolist())
    shutil.copytree(folder / "web", folder / "torn" / "web")
    tar = folder / "torn" / "web" / "00003.tar"
    os.truncate(tar, tar.stat().st_size // 2)
    write_pairs(folder / "held-out", 20, sha256=sha256, broken=[13])
    for place in ("bad", "torn"):
        shutil.copyfile(folder / "merges.txt", folder / place / "merges.txt")
        text = RECIPE.replace("SHARDS/digits-held-out", str(folder / "held-out")).replace("digits", "web")
        (folder / f"{place}.yaml").write_text(text.replace("SHARDS", str(folder / place)))
    return folder


@pytest.fixture(scope="module")
def runs(workplace: Path) -> Path:
    """Runs of one rank and of two on each."""
    for ranks in (1, 2):
        planned = [
            {
                "recipe": str(workplace / f"{place}.yaml"),
                "folder": str(workplace / f"{place}-on-{ranks}"),
                "overrides": ["--data.validation=[]", f"--training.stop_after={steps}", *more],
            }
            for place, steps, more in (
                ("bad", STEPS, []),
                ("torn", 8, ["--data.on_damaged=substitute", "--checkpoint.every=4"]),
            )
        ]
        assert run("tests.distributed.runs:train_runs", ranks, planned, deadline=120) == [[True] * 2] * ranks
    return workplace


def figures(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.timeout(900)
def test_pictures_that_break_off_are_counted_and_replaced_by_the_same_on_any_number_of_ranks(runs: Path) -> None:
    alone, shared = (figures(runs / f"bad-on-{ranks}") for ranks in (1, 2))
    assert len(alone) == len(shared) == STEPS
    assert alone[-1]["substituted_pictures"] == shared[-1]["substituted_pictures"] == len(BROKEN_SAMPLES)
    assert [line["loss"] for line in alone] == pytest.approx([line["loss"] for line in shared], rel=1e-4)


@pytest.mark.timeout(900)
def test_a_torn_tar_is_replaced_where_allowed_and_told_pair_by_pair(runs: Path) -> None:
    alone, shared = (figures(runs / f"torn-on-{ranks}") for ranks in (1, 2))
    assert [line["step"] for line in shared] == list(range(1, 9))
    assert [line["loss"] for line in alone] == pytest.approx([line["loss"] for line in shared], rel=1e-4)
    for ranks in (1, 2):
        events = [e for e in read_events(runs / f"torn-on-{ranks}" / "events.jsonl") if e["event"] == "substituted"]
        members = [event["member"] for event in events]
        # The eight batches are one epoch and a little more: every pair of the tar was met, and each is told once.
        assert sorted(members) == list(range(48, 64))
        assert all(event["corpus"] == "web" and "torn/web/00003.tar" in event["reason"] for event in events)


def test_a_torn_tar_ends_the_training_with_its_name(workplace: Path) -> None:
    folder = workplace / "runs" / "stopping"
    command = [*WORKER, "torn.yaml", "--run.name=stopping", "--run.directory=runs", "--data.validation=[]"]
    with started(command, workplace, folder, deadline=60) as failing:
        lines = [line for line in failing.end(1).splitlines() if not line.startswith("step ")]
    assert len(lines) == 1 and lines[0].startswith("trestle: "), lines
    assert f"{workplace}/torn/web/00003.tar has" in lines[0] and "prepare this shard set again" in lines[0]


def test_a_held_out_picture_that_breaks_off_is_told_before_the_first_step(
    workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = workplace / "runs" / "measured"
    command = [*WORKER, "bad.yaml", "--run.name=measured", "--run.directory=runs", "--training.steps=4"]
    command += ["--checkpoint.every=2", "--training.validate_every=2", "--checkpoint.asynchronous=false"]
    with started(command, workplace, folder, deadline=60) as failing:
        lines = failing.end(1).splitlines()
    why = "the picture of pair 000000013 of held-out cannot be decoded"
    assert [line for line in lines if line.startswith("trestle: ")] == lines[-1:] and why in lines[-1]
    assert failing.files.steps_saved() == [] and not (folder / "metrics.jsonl").exists()
    with started(
        [*command, "--data.validation=[]", "--training.validate_every=0"], workplace, folder, deadline=60
    ) as again:
        again.end(0)
    assert again.files.steps_saved() == [2, 4]
    assert main(["evaluate", str(RunFolder(folder).path)]) == 1
    said = capfd.readouterr()
    assert said.err.startswith("trestle: ") and said.err.count("\n") == 1 and why in said.err and not said.out
