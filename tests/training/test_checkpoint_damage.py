"""Whatever happens to a stored checkpoint is found, named, set aside, and the one before it is used."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.training.checkpoints import values, write
from training.checkpoint import (
    Checkpoint,
    CheckpointMismatch,
    DamagedCheckpoint,
    Piece,
    UnknownFormat,
    candidates,
    newest,
    set_aside,
)

FILES = ["manifest.json", "manifest.json.sha256", "rank-00000.json", "rank-00000.safetensors", "rank-00001.safetensors"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints")
    write(directory, 10, 20)
    return directory


@pytest.fixture
def directory(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "checkpoints"))


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def empty(file: Path) -> None:
    file.write_bytes(b"")


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip, truncate, lengthen, empty, Path.unlink, replace_by_folder])
def test_a_damaged_newest_checkpoint_is_named_and_the_previous_used(
    directory: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(directory / "step-00000020" / name)
    told: list[DamagedCheckpoint] = []
    checkpoint = newest(directory, on_damage=told.append)
    assert checkpoint is not None and checkpoint.step == 10
    assert len(told) == 1
    assert told[0].file.removesuffix(".sha256") == name.removesuffix(".sha256")
    assert "step-00000020" in str(told[0]) and told[0].exit_code == 1
    aside = directory / "step-00000020.damaged"
    assert told[0].what in (aside / "damaged.txt").read_text()
    assert candidates(directory) == [directory / "step-00000010"]


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (flip, "checksum "),
        (truncate, r"truncated: \d+ bytes of \d+"),
        (Path.unlink, "missing"),
        (empty, "truncated: 0 "),
    ],
)
def test_the_report_says_what_is_wrong(directory: Path, damage: Callable[[Path], None], what: str) -> None:
    damage(directory / "step-00000020" / "rank-00001.safetensors")
    with pytest.raises(DamagedCheckpoint, match=what) as caught:
        Checkpoint(directory / "step-00000020").verify()
    assert caught.value.file == "rank-00001.safetensors"


def test_no_flipped_bit_of_the_manifest_goes_unnoticed(directory: Path) -> None:
    """A bit of every byte: neither a changed value nor a change that leaves the JSON's meaning alone."""
    path = directory / "step-00000020"
    original = (path / "manifest.json").read_bytes()
    for position in range(len(original)):
        changed = bytearray(original)
        changed[position] ^= 1 << position % 8
        (path / "manifest.json").write_bytes(changed)
        with pytest.raises(DamagedCheckpoint):
            Checkpoint(path)
    (path / "manifest.json").write_bytes(original)
    Checkpoint(path).verify()


def test_every_rank_checks_its_share_and_together_they_check_everything(directory: Path) -> None:
    path = directory / "step-00000020"
    for name in Checkpoint(path).manifest["files"]:
        original = (path / name).read_bytes()
        flip(path / name)
        finders = []
        for rank in range(3):
            try:
                Checkpoint(path).verify(rank, 3)
            except DamagedCheckpoint as damage:
                finders.append(damage.file)
        assert finders == [name]
        (path / name).write_bytes(original)


def test_all_damages_are_listed(directory: Path) -> None:
    path = directory / "step-00000020"
    flip(path / "rank-00000.safetensors")
    (path / "rank-00001.json").unlink()
    assert [damage.file for damage in Checkpoint(path).damages()] == ["rank-00000.safetensors", "rank-00001.json"]


def test_a_file_cut_short_after_verification_is_an_error_not_a_crash(directory: Path) -> None:
    checkpoint = Checkpoint(directory / "step-00000020")
    checkpoint.verify()
    truncate(directory / "step-00000020" / "rank-00001.safetensors")
    with pytest.raises(DamagedCheckpoint, match="truncated"):
        checkpoint.tensor("embedding")


def test_without_any_good_checkpoint_there_is_none(directory: Path, tmp_path: Path) -> None:
    for path in candidates(directory):
        empty(path / "manifest.json")
    assert newest(directory) is None
    assert newest(tmp_path / "nowhere") is None


def test_a_checkpoint_is_set_aside_once_and_never_over_another(directory: Path) -> None:
    path = directory / "step-00000020"
    assert set_aside(path, "broken") == directory / "step-00000020.damaged"
    assert set_aside(path, "broken") is None  # another rank was faster
    write(directory, 20)
    assert set_aside(path, "broken again") == directory / "step-00000020.damaged-2"
    assert (directory / "step-00000020.damaged" / "damaged.txt").read_text() == "broken\n"
    Checkpoint(directory / "step-00000020.damaged").verify()  # nothing in it was touched


def sign(path: Path, manifest: dict) -> None:
    raw = json.dumps(manifest).encode()
    (path / "manifest.json").write_bytes(raw)
    (path / "manifest.json.sha256").write_text(f"{hashlib.sha256(raw).hexdigest()}  manifest.json\n")


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_another_format_version_is_refused_naming_both(directory: Path, version: object) -> None:
    path = directory / "step-00000020"
    sign(path, Checkpoint(path).manifest | {"format_version": version})
    with pytest.raises(UnknownFormat, match=rf"has format version {version}, this Trestle reads version 1") as caught:
        newest(directory)
    assert caught.value.exit_code == 2
    assert path.exists()  # it is not damaged: nobody sets it aside


@pytest.mark.parametrize(
    "name",
    ["../../secret.safetensors", "/etc/passwd", "sub/rank-00000.json", "rank-00000.pkl", "..", "rank-00000.json\n"],
)
def test_a_manifest_that_leads_out_of_its_folder_is_refused(directory: Path, name: str) -> None:
    path = directory / "step-00000020"
    manifest = Checkpoint(path).manifest
    manifest["files"][name] = {"size": 1, "sha256": ""}
    sign(path, manifest)
    with pytest.raises(DamagedCheckpoint, match="names a file that no checkpoint has"):
        Checkpoint(path)


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"format_version": 1}', "\xff", "{" * 100])
def test_json_that_is_no_manifest_is_damage(directory: Path, content: str) -> None:
    path = directory / "step-00000020"
    (path / "manifest.json").write_text(content)
    (path / "manifest.json.sha256").unlink()
    with pytest.raises(DamagedCheckpoint):
        Checkpoint(path)


@pytest.mark.parametrize("lie", [{"files": {}}, {"world_size": 3}, {"state": None}, {"step": "20"}])
def test_a_signed_manifest_that_is_incomplete_is_damage(directory: Path, lie: dict) -> None:
    path = directory / "step-00000020"
    sign(path, Checkpoint(path).manifest | lie)
    with pytest.raises(DamagedCheckpoint):
        Checkpoint(path)


@pytest.mark.parametrize(
    "lie",
    [
        {"flat": [0, 18]},  # runs into its neighbour's bytes at the end of the file
        {"flat": [17, 36]},  # leaves its box
        {"flat": [5, 5]},
        {"flat": ["0", 5]},
        {"box_offset": [3, 0]},  # leaves the tensor
        {"box_shape": [7]},
        {"kinds": {"weight": ["F32", -4]}},
        {"kinds": {"weight": ["F32", 1 << 40]}},
        {"kinds": {"weight": ["I8", 0]}},
        {"kinds": []},
        {"global_shape": None},
    ],
)
def test_a_signed_record_that_points_outside_its_file_or_tensor_is_damage(directory: Path, lie: dict) -> None:
    path = directory / "step-00000020"
    manifest = Checkpoint(path).manifest
    record = json.loads((path / "rank-00000.json").read_text())
    last = record["pieces"][-1]
    if lie.get("flat") == [0, 18]:
        last["flat"] = [0, last["flat"][1] + 1]
    else:
        record["pieces"][0] |= lie
    raw = json.dumps(record).encode()
    (path / "rank-00000.json").write_bytes(raw)
    manifest["files"]["rank-00000.json"] = {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    sign(path, manifest)
    with pytest.raises(DamagedCheckpoint, match="not a record"):
        Checkpoint(path).tensor("embedding")


def test_a_tensor_of_another_shape_or_name_is_refused_with_both_shapes(directory: Path) -> None:
    checkpoint = Checkpoint(directory / "step-00000020")
    with pytest.raises(CheckpointMismatch, match=r"shape \[7, 5\], the model has \[7, 6\]") as caught:
        checkpoint.read(Piece.whole("embedding", "weight", (7, 6)))
    assert caught.value.exit_code == 2
    with pytest.raises(CheckpointMismatch, match="holds no weight of nothing"):
        checkpoint.tensor("nothing")
    with pytest.raises(CheckpointMismatch, match="holds no momentum of scale"):
        checkpoint.tensor("scale", "momentum")
    with pytest.raises(CheckpointMismatch, match="written by 2 ranks"):
        checkpoint.rank_state(2)


def test_the_golden_checkpoint_of_format_1_keeps_loading() -> None:
    """Written once by `write(directory, 12, state=...)` of tests/training/checkpoints.py; never to be written again."""
    checkpoint = Checkpoint(Path(__file__).parent / "golden" / "format-1" / "step-00000012")
    checkpoint.verify()
    assert (checkpoint.step, checkpoint.world_size) == (12, 2)
    assert checkpoint.state == {"tokens": 3072, "validation_loss": 2.5, "data": {"samples": 12, "exceptions": []}}
    assert checkpoint.rank_state(1) == {"of_rank": 1}
    assert checkpoint.names() == ["embedding", "layers.0.bias", "layers.0.cube", "scale"]
    assert checkpoint.tensor("scale").tolist() == 12005.0
    assert checkpoint.tensor("layers.0.bias", "exp_avg").tolist() == [12113.0 + i for i in range(6)]
    assert torch.equal(checkpoint.tensor("embedding", "exp_avg_sq"), values("embedding", "exp_avg_sq", 12))
    column = Piece("embedding", "weight", (7, 5), (0, 4), (7, 1), 2, 5)
    assert checkpoint.read(column).tolist() == [12009.0 + 4 + 5 * row for row in (2, 3, 4)]
