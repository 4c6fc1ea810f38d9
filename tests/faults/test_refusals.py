"""What cannot be continued or started is refused with one line and the right exit code, and nothing is touched."""

from __future__ import annotations

import hashlib
import shutil
import socket
from pathlib import Path

import pytest

from tests.faults.run_files import RunFiles
from tests.faults.running import TRESTLE, WORKER, started


@pytest.fixture(scope="module")
def finished(workplace: Path, undisturbed: RunFiles) -> Path:
    """A run's folder of this module's own."""
    folder = workplace / "runs" / "refusing"
    shutil.copytree(undisturbed.path, folder)
    return folder


@pytest.fixture(scope="module")
def other_shards(workplace: Path) -> Path:
    """Shards of the same names: prepared again from less text with the same tokenizer, and with another one."""
    recipe = (workplace / "recipe.yaml").read_text().replace("email/*.py", "email/[a-h]*.py")
    same = recipe.replace("{type: char, vocab_size: 400}", "{model: shards/tokenizer.model}")
    for name, text in {"again": same, "tokenizer": recipe.replace("vocab_size: 400", "vocab_size: 300")}.items():
        file = workplace / f"{name}.yaml"
        file.write_text(text.replace("output: shards", f"output: {name}"))
        with started([*TRESTLE, "prepare", file.name], workplace, workplace) as preparing:
            preparing.end(0)
    return workplace


def mix_in(folder: str) -> str:
    return f"--data.mix=[{{shards: {folder}/network, weight: 0.7}}, {{shards: {folder}/tools, weight: 0.3}}]"


def contents(folder: Path) -> dict[str, str]:
    """Every file of a run, with its checksum."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(command: list[str], workplace: Path, folder: Path, exit_code: int) -> str:
    """The one line that the command says before it ends."""
    with started(command, workplace, folder) as run:
        lines = run.end(exit_code).strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("trestle: "), lines
    return lines[0]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (mix_in("again"), "the shards of network are others"),
        (mix_in("tokenizer"), "another tokenizer"),
        ("--model.num_layers=4", "model.num_layers cannot change on a resume (2 -> 4)"),
    ],
    ids=["other data", "other tokenizer", "other model"],
)
def test_resume_with_something_else_is_refused_and_touches_nothing(
    workplace: Path, finished: Path, other_shards: Path, changed: str, why: str
) -> None:
    before = contents(finished)
    assert len(before) > 20
    assert why in refused([*TRESTLE, "resume", "runs/refusing", changed], workplace, finished, 2)
    assert contents(finished) == before


def test_recipe_that_was_edited_into_another_model_is_refused_and_touches_nothing(
    workplace: Path, finished: Path
) -> None:
    folder = workplace / "runs" / "edited"
    shutil.copytree(finished, folder)
    recipe = folder / "recipe.yaml"
    text = recipe.read_text()
    assert text.count("num_layers: 2\n") == 1
    recipe.write_text(text.replace("num_layers: 2\n", "num_layers: 4\n"))
    before = contents(folder)
    said = refused([*TRESTLE, "resume", "runs/edited"], workplace, folder, 2)
    assert "holds another model: model.num_layers was 2 and is 4" in said
    assert contents(folder) == before


def test_ranks_refuse_other_data_by_themselves(workplace: Path, finished: Path, other_shards: Path) -> None:
    before = contents(finished)
    said = refused([*WORKER, "runs/refusing", mix_in("again")], workplace, finished, 2)
    assert "the data are not those of the checkpoint: the shards of network are others" in said
    assert contents(finished) == before


def test_master_port_in_use_is_one_line(workplace: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        more = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [*WORKER, "recipe.yaml", "--run.name", "port"]
        with started(command, workplace, workplace / "runs" / "port", more=more) as run:
            lines = run.end(1).strip().splitlines()
    assert lines == [
        f"trestle: MASTER_PORT {port} cannot be used on this machine: Address already in use; "
        "end what listens there, or choose another port"
    ]
    assert not run.files.checkpoints.exists()
