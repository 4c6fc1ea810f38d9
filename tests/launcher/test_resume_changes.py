"""What a resume may change, what it refuses, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import changes, resume
from launcher.cli import main
from launcher.errors import UserError
from launcher.job import load_job
from launcher.run_folder import RunFolder
from training.metrics.events import read_events


@pytest.fixture
def run(here: Path) -> RunFolder:
    """A run's folder as `trestle train` makes it, before its first step."""
    folder = RunFolder(here / "runs" / "small")
    folder.create(load_job(here / "recipe.yaml").to_yaml(), here / "shards" / "tokenizer.model")
    return folder


def changed(run: RunFolder, *overrides: str) -> list[changes.Change]:
    return changes.changes(load_job(run.path).document(), load_job(run.path, overrides).document())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("parallel.zero_stage", "0"),
        ("parallel.tensor", "2"),
        ("cluster.nodes", "3"),
        ("cluster.address", "head:6379"),
        ("batch.global_batch_size", "16"),
        ("training.steps", "1B tokens"),
        ("training.log_every", "1"),
        ("optimizer.lr", "1e-5"),
        ("optimizer.schedule", "linear"),
        ("optimizer.warmup", "7"),
        ("optimizer.decay", "70"),
        ("optimizer.min_lr_ratio", "0.5"),
        ("checkpoint.keep", "7"),
        ("data.mix.0.weight", "3"),
    ],
)
def test_change_that_continues_the_run_is_allowed(run: RunFolder, key: str, value: str) -> None:
    (change,) = changed(run, f"--{key}={value}")
    assert key.startswith(change.key) and change.old != change.new
    assert change.resizes == (key in ("parallel.zero_stage", "parallel.tensor", "cluster.nodes"))


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("model.num_layers", "4", "2 -> 4): the checkpoint holds another model"),
        ("model.dropout", "0.1", "the checkpoint holds another model"),
        ("run.seed", "8", "7 -> 8): initial weights, dropout and the order of the data come from it"),
        ("run.name", "other", "move or rename the folder instead"),
        ("training.precision", "bf16", "the losses would no longer be those of this run"),
        ("data.document_masks", "true", "the losses would no longer be those of this run"),
        ("optimizer.betas", "[0.8, 0.9]", "the moments in the checkpoint were made with the old value"),
        ("optimizer.weight_decay", "0.2", "the moments in the checkpoint"),
    ],
)
def test_change_that_makes_another_run_is_refused(run: RunFolder, key: str, value: str, why: str) -> None:
    before = run.recipe.read_bytes()
    with pytest.raises(UserError, match="cannot change on a resume") as caught:
        changed(run, f"--{key}={value}")
    assert key in str(caught.value) and why in str(caught.value) and caught.value.exit_code == 2
    assert main(["resume", str(run.path), f"--{key}={value}"]) == 2
    assert run.recipe.read_bytes() == before and not run.events.exists()


def test_nothing_changed_means_nothing_noted(run: RunFolder) -> None:
    assert changed(run) == [] and changed(run, "--optimizer.lr=6.0e-4") == []
    resume.note(run, load_job(run.path), [])
    assert not run.events.exists() and not (run.path / "recipe-1.yaml").exists()


def test_changes_are_noted_and_the_former_recipes_kept(run: RunFolder) -> None:
    original = run.recipe.read_text()
    for overrides in (["--optimizer.lr=1e-5", "--parallel.tensor=2"], ["--training.steps=9"]):
        resume.note(run, load_job(run.path, overrides), changed(run, *overrides))
    assert (run.path / "recipe-1.yaml").read_text() == original
    assert load_job(run.path / "recipe-2.yaml").recipe.optimizer.lr == 1e-5
    now = load_job(run.path).recipe
    assert (now.optimizer.lr, now.parallel.tensor, now.training.steps) == (1e-5, 2, 9)
    noted = [(event["event"], event["keys"]) for event in read_events(run.events)]
    assert noted == [
        ("changed", {"optimizer.lr": {"old": 6.0e-4, "new": 1e-5}}),
        ("resized", {"parallel.tensor": {"old": 1, "new": 2}}),
        ("changed", {"training.steps": {"old": 4, "new": 9}}),
    ]


def test_impossible_change_leaves_the_run_as_it_was(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = run.recipe.read_bytes()
    assert main(["resume", str(run.path), "--batch.micro_batch_size", "3"]) == 2
    assert "8 is not divisible by 1 data-parallel ranks x batch.micro_batch_size 3" in capsys.readouterr().err
    assert run.recipe.read_bytes() == before and not run.events.exists()


def test_shards_of_another_tokenizer_are_refused(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run.tokenizer.write_bytes(b"another")
    assert main(["resume", str(run.path)]) == 2
    assert "data.mix was made with another tokenizer than this run" in capsys.readouterr().err


def test_help_says_what_may_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(key in shown for key in [*changes.ALLOWED, *changes.REFUSED])
