"""Checkpoints that the disk has damaged: each is set aside with its reason, and the one before it is used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import STEPS
from tests.faults.run_files import RunFiles, assert_same_run
from tests.faults.running import TRESTLE, started
from training.checkpoint import candidates


def flip_a_bit(checkpoint: Path) -> None:
    data = checkpoint / "rank-00001.safetensors"
    content = bytearray(data.read_bytes())
    content[len(content) * 2 // 3] ^= 0b100
    data.write_bytes(content)


def truncate_a_file(checkpoint: Path) -> None:
    data = checkpoint / "rank-00000.safetensors"
    data.write_bytes(data.read_bytes()[:-1])


def remove_a_file(checkpoint: Path) -> None:
    (checkpoint / "rank-00001.json").unlink()


def empty_the_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_bytes(b"")


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (flip_a_bit, "rank-00001.safetensors: checksum"),
    (truncate_a_file, "rank-00000.safetensors: truncated"),
    (remove_a_file, "rank-00001.json: missing"),
    (empty_the_manifest, "manifest.json: empty"),
]


@pytest.mark.timeout(900)
def test_damaged_checkpoints_are_set_aside_one_by_one_and_the_last_whole_one_is_used(
    workplace: Path, undisturbed: RunFiles
) -> None:
    run_folder = workplace / "runs" / "damaged"
    shutil.copytree(undisturbed.path, run_folder)
    newest_first = candidates(run_folder / "checkpoints")
    assert len(newest_first) > len(DAMAGES)
    for (damage, _), checkpoint in zip(DAMAGES, newest_first, strict=False):
        damage(checkpoint)
    with started([*TRESTLE, "resume", "runs/damaged"], workplace, run_folder, deadline=180) as run:
        output = run.end(0)
    told = run.files.events("checkpoint_damaged")
    assert len(told) == len(DAMAGES)
    for (_, reason), checkpoint, event in zip(DAMAGES, newest_first, told, strict=False):
        assert event["checkpoint"] == checkpoint.name and reason in event["reason"]
        assert f"{checkpoint.name} is set aside" in output
        assert reason in (checkpoint.with_name(f"{checkpoint.name}.damaged") / "damaged.txt").read_text()
    assert run.files.events("resumed")[-1]["step"] == STEPS - 4 * len(DAMAGES)
    assert_same_run(run.files, undisturbed)
