"""A checkpoint that an attacker has forged runs no code, reads nothing outside its folder, and ends nothing but itself.

Manifests that name files elsewhere, and records that lie about flat ranges, are in tests/training.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher import cli
from tests.faults.malice import Canary, contents, digest, sign, untouched
from tests.faults.run_files import RunFiles
from tests.faults.running import TRESTLE, started
from tests.training.checkpoints import write
from training.checkpoint import Checkpoint, CheckpointMismatch, DamagedCheckpoint, candidates

DATA, RECORD = "rank-00001.safetensors", "rank-00001.json"
Attack = Callable[[Path, Path], None]


def pickle_for_tensors(checkpoint: Path, outside: Path) -> None:
    (checkpoint / DATA).write_bytes(pickle.dumps(Canary(outside / "canary")))
    sign(checkpoint)


def pickle_for_a_record(checkpoint: Path, outside: Path) -> None:
    (checkpoint / RECORD).write_bytes(pickle.dumps(Canary(outside / "canary")))
    sign(checkpoint)


def link_to_elsewhere(checkpoint: Path, outside: Path) -> None:
    """A link that agrees with the manifest: whoever copies or shows the checkpoint would give the file away."""
    secret = outside / "secret.txt"
    (checkpoint / DATA).unlink()
    (checkpoint / DATA).symlink_to(secret)
    sign(checkpoint)


def link_for_a_record(checkpoint: Path, outside: Path) -> None:
    (checkpoint / RECORD).rename(checkpoint / "hidden")
    (checkpoint / RECORD).symlink_to(checkpoint / "hidden")


def pipe_for_tensors(checkpoint: Path, outside: Path) -> None:
    """Nobody ever writes to it: a reader would wait for good."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / DATA).unlink()
    os.mkfifo(checkpoint / DATA)
    manifest["files"][DATA]["size"] = 0
    sign(checkpoint, manifest)


def endless_manifest(checkpoint: Path, outside: Path) -> None:
    (checkpoint / "manifest.json").unlink()
    (checkpoint / "manifest.json").symlink_to("/dev/zero")


def pipe_for_the_manifest(checkpoint: Path, outside: Path) -> None:
    (checkpoint / "manifest.json").unlink()
    os.mkfifo(checkpoint / "manifest.json")


def bottomless_manifest(checkpoint: Path, outside: Path) -> None:
    manifest = (checkpoint / "manifest.json").read_text().strip()
    (checkpoint / "manifest.json").write_text(manifest[:-1] + ', "deep": ' + "[" * 200_000 + "]" * 200_000 + "}")
    digest(checkpoint)


def bottomless_record(checkpoint: Path, outside: Path) -> None:
    (checkpoint / RECORD).write_text('{"state": null, "pieces": ' + "[" * 200_000 + "]" * 200_000 + "}")
    sign(checkpoint)


def huge_header(checkpoint: Path, outside: Path) -> None:
    """The first eight bytes of a safetensors file are the size of its header."""
    content = bytearray((checkpoint / DATA).read_bytes())
    content[:8] = (2**62).to_bytes(8, "little")
    (checkpoint / DATA).write_bytes(content)
    sign(checkpoint)


def absurd_shapes(checkpoint: Path, outside: Path) -> None:
    """A tensor of 2^62 elements, of which the file holds a few."""

    def lie(piece: dict[str, Any]) -> None:
        if piece["name"] == "embedding":
            piece.update(global_shape=[2**31, 2**31], box_shape=[2**31, 2**31])

    for rank in (0, 1):
        path = checkpoint / f"rank-{rank:05d}.json"
        record = json.loads(path.read_text())
        for piece in record["pieces"]:
            lie(piece)
        path.write_text(json.dumps(record))
    sign(checkpoint)


REFUSED: list[Attack] = [
    pickle_for_tensors,
    pickle_for_a_record,
    link_to_elsewhere,
    link_for_a_record,
    pipe_for_tensors,
    endless_manifest,
    pipe_for_the_manifest,
    bottomless_manifest,
    bottomless_record,
]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write(tmp_path / "checkpoints", 20)
    return tmp_path / "checkpoints" / "step-00000020"


def used(checkpoint: Path) -> None:
    """As a rank uses it."""
    opened = Checkpoint(checkpoint)
    opened.verify()
    opened.tensor("embedding")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("attack", REFUSED, ids=lambda attack: attack.__name__)
def test_forged_checkpoint_is_damage(attack: Attack, checkpoint: Path, tmp_path: Path) -> None:
    with untouched(tmp_path / "outside"):
        attack(checkpoint, tmp_path / "outside")
        with pytest.raises(DamagedCheckpoint):
            used(checkpoint)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("attack", REFUSED, ids=lambda attack: attack.__name__)
def test_inspecting_a_forged_checkpoint_shows_its_damage(
    attack: Attack, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with untouched(tmp_path / "outside"):
        attack(checkpoint, tmp_path / "outside")
        before = contents(checkpoint)
        assert cli.main(["inspect", str(checkpoint)]) == 1
        assert contents(checkpoint) == before
    assert "jewels" not in "".join(capsys.readouterr())


@pytest.mark.timeout(300)
def test_header_is_not_believed(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with untouched(tmp_path / "outside"):
        whole = Checkpoint(checkpoint).tensor("embedding")
        huge_header(checkpoint, tmp_path / "outside")
        assert Checkpoint(checkpoint).tensor("embedding").equal(whole)
        assert cli.main(["inspect", str(checkpoint)]) == 0


@pytest.mark.timeout(300)
def test_absurd_shape_is_refused_without_memory_for_it(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absurd_shapes(checkpoint, tmp_path / "outside")
    with pytest.raises((CheckpointMismatch, DamagedCheckpoint)):
        Checkpoint(checkpoint).tensor("embedding")
    assert cli.main(["inspect", str(checkpoint)]) in (1, 2)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.timeout(900)
def test_run_whose_newest_checkpoints_are_forged_resumes_from_the_last_honest_one(
    workplace: Path, undisturbed: RunFiles, tmp_path: Path
) -> None:
    attacks = [link_to_elsewhere, pipe_for_tensors, endless_manifest, bottomless_manifest]
    folder = workplace / "runs" / "forged"
    shutil.copytree(undisturbed.path, folder)
    newest_first = candidates(folder / "checkpoints")
    assert len(newest_first) > len(attacks)
    with untouched(tmp_path / "outside"):
        for attack, path in zip(attacks, newest_first, strict=False):
            attack(path, tmp_path / "outside")
        with started([*TRESTLE, "resume", "runs/forged"], workplace, folder, deadline=240) as run:
            run.end(0)
    assert [e["checkpoint"] for e in run.files.events("checkpoint_damaged")] == [
        path.name for path in newest_first[: len(attacks)]
    ]
