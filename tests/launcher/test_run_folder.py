"""A run's folder: what is never overwritten, who may write, and what train checks before it makes one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.errors import UserError
from launcher.job import load_job
from launcher.run_folder import RunFolder
from launcher.supervise import check_shards, closing_words
from training.errors import RecipeError


@pytest.fixture
def folder(here: Path) -> RunFolder:
    made = RunFolder(here / "runs" / "small")
    made.create(load_job(here / "recipe.yaml").to_yaml(), here / "shards" / "tokenizer.model")
    return made


def test_folder_holds_the_resolved_recipe_and_the_tokenizer(folder: RunFolder, here: Path) -> None:
    assert load_job(folder.path).document() == load_job(here / "recipe.yaml").document()
    assert "max_restarts: 3" in folder.recipe.read_text(), "every default is written out"
    assert folder.tokenizer.read_bytes() == (here / "shards" / "tokenizer.model").read_bytes()
    assert sorted(p.name for p in folder.path.iterdir()) == ["recipe.yaml", "tokenizer.model"]


def test_run_with_checkpoints_is_never_started_anew(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    (folder.checkpoints / "step-00000002").mkdir(parents=True)
    before = folder.recipe.read_bytes()
    assert main(["train", "recipe.yaml"]) == 2
    error = capsys.readouterr().err
    assert "runs/small has checkpoints already: continue with `trestle resume runs/small`, or give this run" in error
    assert folder.recipe.read_bytes() == before


def test_folder_of_something_else_is_not_taken(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "runs" / "small").mkdir(parents=True)
    (here / "runs" / "small" / "thesis.txt").write_text("mine")
    assert main(["train", "recipe.yaml"]) == 2
    assert "exists and is no run's folder; choose another --run.name" in capsys.readouterr().err


def test_second_trestle_in_the_same_folder_is_refused(folder: RunFolder) -> None:
    again = RunFolder(folder.path)
    with folder.lock(), pytest.raises(UserError, match="is being trained by another trestle"), again.lock():
        raise AssertionError("both hold the lock")
    with again.lock():
        assert (folder.path / ".lock").exists()


def test_closing_words_say_what_was_reached_and_what_comes_next(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"step": 2, "loss": 6.5, "validation_loss": 6.25, "mfu": None}, {"step": 4, "loss": 6.0, "mfu": None}]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "los')
    monkeypatch.chdir(folder.path.parent.parent)
    words = closing_words(RunFolder(Path("runs/small")))
    assert "run runs/small finished at step 4" in words
    assert "6.0000" in words and "6.2500" in words
    assert "tensorboard --logdir runs/small/tensorboard --host 127.0.0.1" in words
    assert "trestle resume runs/small" in words and "trestle generate runs/small --prompt" in words


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "--model.sequence_length=32",
            "data.mix has samples of 64 tokens, but model.sequence_length is 32; set it to 64",
        ),
        (
            "--model.vocab_size=300",
            "model.vocab_size is 300, but the tokenizer of data.mix has 500 tokens; set it to 500",
        ),
        ("--data.mix.0.shards=elsewhere", "the shards elsewhere are not there: prepare your corpora"),
        ("--data.mix=[]", "data.mix is empty: name shards, such as --data shards/mix.yaml"),
    ],
)
def test_shards_that_do_not_fit_are_refused_before_any_rank_starts(here: Path, override: str, said: str) -> None:
    with pytest.raises((UserError, RecipeError)) as caught:
        check_shards(load_job(here / "recipe.yaml", [override]).recipe)
    assert said in str(caught.value) and caught.value.exit_code == 2


def test_open_vocabulary_becomes_the_shards_own(here: Path) -> None:
    recipe = load_job(here / "recipe.yaml", ["--data=shards/mix.yaml"]).recipe
    assert recipe.model.vocab_size is None
    assert check_shards(recipe).corpora == ["network", "tools"]
    assert recipe.model.vocab_size == 500
