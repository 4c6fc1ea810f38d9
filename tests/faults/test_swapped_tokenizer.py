"""A tokenizer that somebody has put in the place of the run's, or of the shards', is refused before it is used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from launcher import cli
from tests.faults.run_files import RunFiles


@pytest.fixture
def here(workplace: Path, undisturbed: RunFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with shards, a finished run, and another tokenizer of the same size."""
    shutil.copytree(workplace / "shards", tmp_path / "shards")
    shutil.copytree(undisturbed.path, tmp_path / "runs" / "done")
    shutil.copy(workplace / "recipe.yaml", tmp_path / "recipe.yaml")
    other = bytearray((workplace / "shards" / "tokenizer.model").read_bytes())
    at = other.index(b"e\x15")  # a piece and its score: the letters trade places, and the model still loads
    other[at : at + 1] = b"\x7f"
    (tmp_path / "other.model").write_bytes(other)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(list(words)) == 2
    said = capsys.readouterr()
    assert said.err.startswith("trestle: ") and said.err.count("\n") == 1 and not said.out, said
    return said.err


@pytest.mark.timeout(900)
def test_swapped_tokenizer_is_refused_by_every_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = here / "runs" / "done" / "tokenizer.model"
    shutil.copy(here / "other.model", own)
    for words in (
        ("generate", "runs/done", "--prompt", "x"),
        ("export", "runs/done", "out", "--to", "huggingface"),
        ("resume", "runs/done"),
    ):
        assert "tokenizer" in refused(capsys, *words), words
    assert not (here / "out").exists()


@pytest.mark.timeout(900)
def test_tokenizer_that_is_not_the_shards_own_is_refused_before_a_run_begins(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(here / "other.model", here / "shards" / "tokenizer.model")
    said = refused(capsys, "train", "recipe.yaml", "--run.name", "new")
    assert "tokenizer" in said and not (here / "runs" / "new").exists()
