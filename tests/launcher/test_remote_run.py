"""`resume URL`, `inspect URL`, and a run that must not begin anew while its checkpoints live elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.errors import UserError
from launcher.job import load_job
from launcher.remote_run import check_not_begun, fetch_run
from launcher.run_folder import RunFolder
from tests.training.checkpoints import write
from training.checkpoint.remote import RemoteFolder


@pytest.fixture
def url(here: Path) -> str:
    """The place of a run that another machine began: a file system stands for the bucket."""
    folder = RunFolder(here / "elsewhere" / "small")
    recipe = load_job(here / "recipe.yaml", ["--run.directory=elsewhere", "--checkpoint.remote=/old/place"]).to_yaml()
    folder.create(recipe, here / "shards" / "tokenizer.model")
    folder.events.write_text('{"event": "started", "time": "2026-01-01T00:00:00.000+00:00"}\n')
    (here / "store").mkdir()
    RemoteFolder(str(here / "store"), "small").put_run_files(folder.path)
    write(here / "store" / "small" / "checkpoints", 2)
    shutil.rmtree(here / "elsewhere")
    return str(here / "store" / "small")


def test_folder_is_made_again_from_what_lies_beside_the_checkpoints(url: str, here: Path) -> None:
    folder = fetch_run(url, ["--run.directory", "mine", "--training.steps=9"])
    assert folder.path == Path("mine/small")
    assert folder.tokenizer.read_bytes() == (here / "shards" / "tokenizer.model").read_bytes()
    assert "started" in folder.events.read_text()
    job = load_job(folder.path)
    assert (job.recipe.run.directory, job.recipe.run.name) == ("mine", "small")
    assert job.recipe.checkpoint.remote == str(here / "store")  # where it was found, not where it was made
    assert job.recipe.training.steps == 4  # other overrides are for the resume to judge
    folder.events.write_text("mine now")
    assert fetch_run(url, ["--run.directory", "mine"]).events.read_text() == "mine now"


def test_place_without_a_run_is_refused(url: str, here: Path) -> None:
    with pytest.raises(UserError, match=r"is no run's place: it has no recipe\.yaml"):
        fetch_run(str(here / "store" / "other"), [])
    with pytest.raises(UserError, match="is no run's place"):
        fetch_run(f"{here}/store/..", [])
    assert not (here / "runs").exists()


def test_folder_of_something_else_is_not_taken(url: str, here: Path) -> None:
    (here / "runs" / "small").mkdir(parents=True)
    (here / "runs" / "small" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"choose another --run\.directory"):
        fetch_run(url, [])


def test_run_with_checkpoints_elsewhere_is_never_started_anew(
    url: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "recipe.yaml", f"--checkpoint.remote={here}/store"]) == 2
    assert f"{url} has checkpoints already: continue with `trestle resume {url}`" in capsys.readouterr().err
    assert not (here / "runs").exists()
    check_not_begun(load_job(here / "recipe.yaml", [f"--checkpoint.remote={here}/store", "--run.name=new"]).recipe)


def test_impossible_remote_is_refused_with_what_would_fit(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "recipe.yaml", "--checkpoint.remote=ftp://host/place"]) == 2
    assert "checkpoint.remote is 'ftp://host/place'; it must be s3://BUCKET/PREFIX" in capsys.readouterr().err
