"""A recipe that an attacker has written builds no object, eats no memory and puts nothing outside its folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import cli
from tests.faults.malice import untouched

TAGS = {
    "object": "run: {name: !!python/object/apply:os.system ['touch %s']}",
    "new": "!!python/object/new:os.system ['touch %s']",
    "module": "run: !!python/module:antigravity\nmodel: {num_layers: !!python/name:os.system}  # %s",
    "own tag": "run: {name: !canary '%s'}",
}
LAUGHS = "\n".join(f"  l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9 if n else ['lol'] * 9)}]" for n in range(12))
"""Nine to the twelfth elements from a kilobyte: each list holds the one before nine times."""


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which a command refuses, having made nothing."""
    before = sorted(Path().rglob("*"))
    assert cli.main(list(words)) == 2
    said = capsys.readouterr()
    assert said.err.startswith("trestle: ") and said.err.count("\n") == 1 and len(said.err) < 2000
    assert sorted(Path().rglob("*")) == before
    return said.err


@pytest.mark.parametrize("kind", TAGS)
@pytest.mark.parametrize("command", ["train", "prepare"])
def test_tags_build_nothing(command: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with untouched(tmp_path / "outside") as canary:
        Path("bad.yaml").write_text(TAGS[kind] % canary)
        assert "not valid YAML" in refused(capsys, command, "bad.yaml")
        override = f"--run.name=!!python/object/apply:os.system ['touch {canary}']"
        Path("good.yaml").write_text("model: {vocab_size: 100}\nbatch: {global_batch_size: 8, micro_batch_size: 1}\n")
        if command == "train":
            refused(capsys, "train", "good.yaml", override, "--dry-run")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("where", ["data:\n  mix: *l11", "run:\n  name: *l11", "model: *l11", "nonsense: *l11"])
def test_aliases_of_aliases_are_refused_at_once(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bomb.yaml").write_text(f"prepare:\n{LAUGHS}\n{where}\n")
    refused(capsys, "train", "bomb.yaml")


@pytest.mark.timeout(300)
def test_bottomless_recipe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("deep.yaml").write_text("data: {mix: " + "[" * 20_000 + "]" * 20_000 + "}\n")
    refused(capsys, "train", "deep.yaml")


@pytest.mark.parametrize("name", ["../outside/run", "..", "/etc/run", ".", "", "a/b", "a\0b", "../outside"])
def test_name_of_a_run_leads_nowhere_else(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with untouched(tmp_path / "outside"):
        Path("bad.yaml").write_text("model: {vocab_size: 100}\nbatch: {global_batch_size: 8, micro_batch_size: 1}\n")
        said = refused(capsys, "train", "bad.yaml", f"--run.name={name}", "--dry-run")
        assert "run.name" in said


WRITTEN = [
    *(".lock", "metrics.jsonl", "events.jsonl", "logs/rank-00000.log", "evaluation/report.json"),
    *(".goodput.json.draft", ".metrics.jsonl.draft", ".recipe.yaml.draft", "tensorboard", "checkpoints"),
]


@pytest.mark.parametrize("name", WRITTEN)
def test_run_from_elsewhere_has_nothing_written_through_its_links(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with untouched(tmp_path / "outside"):
        Path("run/logs").mkdir(parents=True)
        Path("run/recipe.yaml").write_text("model: {vocab_size: 100}\n")
        Path("run", name).parent.mkdir(exist_ok=True)
        Path("run", name).symlink_to(tmp_path / "outside" / "secret.txt")
        assert "is a link" in refused(capsys, "resume", "run")
