"""A CLIP's run that stops in mid-epoch and resumes is the run that never stopped, crops and dropout included: bit for
bit on its layout, within rounding on another number of ranks.

The launches are in an order in which checkpoints travel: one rank, then two, then one.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.cli import main
from tests.distributed.clip_runs import write_digits, write_recipe
from tests.distributed.launch import run
from training.checkpoint import Checkpoint, candidates
from training.metrics import read_events
from training.recipe import load_recipe, to_yaml

STEPS, STOP = 8, 3
STRIPS = 100
"""In batches of 16 the stop is in the midst of the first epoch, and the end in that of the second."""

EARLY = f"--training.stop_after={STOP}"
BF16 = "--training.precision=bf16"
NO_DROPOUT = "--model.dropout=0"  # of tensor-parallel ranks each has its own masks
NINE = ["--batch.global_batch_size=9", "--batch.micro_batch_size=2"]  # on two ranks two micro-batches and three
NO_MASKS = [NO_DROPOUT, "--model.patch_dropout=0", EARLY]  # those of unequal shares' micro-batches are others
RESNET50 = ["--model.vision=resnet50", "--model.vision_width=4", "--model.image_size=32", "--model.patch_dropout=0"]
OTHER_CROPS = ["--data.images.flip=0.1", "--data.images.crop_scale=[0.9, 1.0]"]
ALLOWED = "--data.allow_change=true"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_digits(folder, training=STRIPS, held_out=20)
    return write_recipe(folder)


@dataclass
class Runs:
    """The folders of runs, and the specifications of one launch."""

    recipe: Path
    base: Path
    planned: list[dict[str, Any]] = field(default_factory=list)

    def plan(self, name: str, *overrides: str) -> None:
        self.planned.append({"recipe": str(self.recipe), "folder": str(self.base / name), "overrides": list(overrides)})

    def twice(self, name: str, *overrides: str) -> None:
        """One run that never stops, and one that stops after STOP steps and goes on."""
        self.plan(f"{name}-straight", *overrides)
        self.plan(f"{name}-resumed", *overrides, EARLY)
        self.plan(f"{name}-resumed", *overrides)

    def resume_elsewhere(self, source: str, name: str, *overrides: str) -> None:
        """Continue a copy of what `source` had saved when it stopped."""
        saved = f"checkpoints/step-{STOP:08d}"
        shutil.copytree(self.base / source / saved, self.base / name / saved)
        self.plan(name, *overrides)

    def launch(self, world_size: int) -> None:
        planned, self.planned = self.planned, []
        finished = run("tests.distributed.runs:train_runs", world_size, planned, deadline=280)
        assert finished == [[True] * len(planned)] * world_size


@pytest.fixture(scope="module")
def runs(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    made = Runs(recipe, tmp_path_factory.mktemp("runs"))
    made.twice("one")
    made.plan("without-dropout", NO_DROPOUT)
    made.plan("nine", *NINE, *NO_MASKS)
    made.launch(1)
    made.twice("two")
    made.twice("two-bf16", BF16)
    made.twice("zero3", "--parallel.zero_stage=3")
    made.twice("locked", "--model.lock_image=true", "--parallel.zero_stage=2")
    made.twice("sigmoid", "--model.loss=sigmoid")
    made.twice("resnet50", *RESNET50, "--batch.micro_batch_size=8")
    made.plan("tensor", NO_DROPOUT, "--parallel.tensor=2", EARLY)
    made.twice("uneven", *NINE)
    made.plan("uneven-nine", *NINE, *NO_MASKS)
    made.resume_elsewhere("one-resumed", "one-to-two")
    made.launch(2)
    made.resume_elsewhere("two-resumed", "two-to-one")
    made.resume_elsewhere("zero3-resumed", "zero3-to-one")
    made.resume_elsewhere("tensor", "tensor-to-one", NO_DROPOUT)
    made.resume_elsewhere("one-resumed", "other-crops", *OTHER_CROPS, ALLOWED, "--training.stop_after=6")
    made.plan("other-crops", *OTHER_CROPS)
    made.launch(1)
    return made


def curve(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len({line["step"] for line in lines}) == len(lines), "a step was recorded twice"
    return {line["step"]: line["loss"] for line in lines}


def last_line(folder: Path) -> dict[str, Any]:
    line: dict[str, Any] = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return line


def state(folder: Path) -> dict[tuple[str, str], torch.Tensor]:
    """Every tensor of the newest checkpoint."""
    checkpoint = Checkpoint(candidates(folder / "checkpoints")[0])
    assert checkpoint.step == STEPS
    checkpoint.verify()
    return {
        (name, kind): checkpoint.tensor(name, kind) for name in checkpoint.names() for kind in checkpoint.kinds(name)
    }


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["one", "two", "two-bf16", "zero3", "locked", "sigmoid", "resnet50", "uneven"])
def test_resumed_run_is_bit_equal_to_one_that_never_stopped(runs: Runs, name: str) -> None:
    straight, resumed = runs.base / f"{name}-straight", runs.base / f"{name}-resumed"
    assert sorted(curve(straight)) == list(range(1, STEPS + 1))
    assert curve(resumed) == curve(straight)
    measured, again = last_line(straight), last_line(resumed)
    held_out = [key for key in measured if key.startswith(("validation_loss", "retrieval/"))]
    assert held_out and all(measured[key] == again[key] for key in [*held_out, "grad_norm", "logit_scale"])
    expected, found = state(straight), state(resumed)
    assert expected.keys() == found.keys()
    assert {kind for _, kind in expected} == {"weight", "exp_avg", "exp_avg_sq"}
    for key, tensor in expected.items():
        assert torch.equal(tensor, found[key]), key


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("one-to-two", "one-straight"),
        ("two-to-one", "one-straight"),
        ("zero3-to-one", "one-straight"),
        ("tensor-to-one", "without-dropout"),
    ],
)
def test_resume_on_another_number_of_ranks_continues_the_same_loss(runs: Runs, name: str, whole: str) -> None:
    """With dropout on: the micro-batches of a step are numbered over all ranks, and have their masks by number."""
    straight, after = curve(runs.base / whole), curve(runs.base / name)
    before = curve(runs.base / "tensor") if name == "tensor-to-one" else curve(runs.base / "two-resumed")
    assert sorted(after) == list(range(STOP + 1, STEPS + 1))
    for step, loss in ({step: before[step] for step in range(1, STOP + 1)} | after).items():
        assert loss == pytest.approx(straight[step], rel=1e-4), f"step {step}"


@pytest.mark.timeout(600)
def test_ranks_with_unequal_shares_learn_what_one_rank_does(runs: Runs) -> None:
    """Nine pairs of a stream over two ranks: four and five, in two micro-batches and three."""
    alone, shared = curve(runs.base / "nine"), curve(runs.base / "uneven-nine")
    assert sorted(alone) == list(range(1, STOP + 1))
    assert shared == pytest.approx(alone, rel=1e-4)
    assert last_line(runs.base / "uneven-nine")["samples"] == 9 * STOP


@pytest.mark.timeout(600)
def test_weights_change_between_checkpoints_and_a_locked_towers_do_not(runs: Runs) -> None:
    """Else the comparisons above would hold for a run that does nothing."""
    for name, moves in (("two-straight", True), ("locked-straight", False)):
        newest, older = (Checkpoint(path) for path in candidates(runs.base / name / "checkpoints")[:2])
        assert newest.step > older.step
        of_tower = {
            tower: max(
                float((newest.tensor(n) - older.tensor(n)).abs().max()) for n in newest.names() if n.startswith(tower)
            )
            for tower in ("text.", "vision.")
        }
        assert of_tower["text."] > 1e-4 and (of_tower["vision."] > 1e-4 if moves else of_tower["vision."] == 0.0)


@pytest.mark.timeout(600)
def test_other_crops_are_taken_from_where_a_resume_allows_them(runs: Runs) -> None:
    straight, after = curve(runs.base / "one-straight"), curve(runs.base / "other-crops")
    assert sorted(after) == list(range(STOP + 1, STEPS + 1))
    assert all(after[step] != straight[step] for step in after)
    (changed,) = (e for e in read_events(runs.base / "other-crops" / "events.jsonl") if e["event"] == "data_changed")
    assert changed["step"] == STOP
    assert "data.images.crop_scale was [0.5, 1.0] and is [0.9, 1.0]" in changed["difference"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["--data.images.flip=0.1"], "data.images.flip was 0.5 and is 0.1; set it back, or go on with the new"),
        (["--data.images.augment=square_crop"], "data.images.augment was random_resized_crop and is square_crop"),
        (["--model.image_size=32"], "model.image_size cannot change on a resume (24 -> 32)"),
        (["--model.patch_dropout=0"], "model.patch_dropout cannot change on a resume"),
        (["--data.mix=[{shards: SHARDS/digits-held-out}]"], "the mix was digits and is digits-held-out"),
    ],
    ids=["flip", "augmentation", "image size", "patch dropout", "another corpus"],
)
def test_resume_with_other_pictures_is_refused_with_a_sentence(
    runs: Runs, overrides: list[str], why: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs.base / "one-resumed", folder)
    (folder / "recipe.yaml").write_text(to_yaml(load_recipe(runs.recipe)))
    given = [text.replace("SHARDS", str(runs.recipe.parent / "shards")) for text in overrides]
    assert main(["resume", str(folder), *given]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and why in said[0], said
    assert [path.name for path in folder.glob("recipe*")] == ["recipe.yaml"]
