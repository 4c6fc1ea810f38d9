"""Saving: beside the training, all ranks or none, and nothing half-written ever looks whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.training.checkpoints import KINDS, SHAPES, share, values, write
from training.checkpoint import Checkpoint, CheckpointWriter, Piece, Retention, SaveFailed, candidates
from training.checkpoint import format as fmt
from training.checkpoint.format import step_of


def steps(directory: Path) -> list[int]:
    return [step_of(path.name) or 0 for path in candidates(directory)]


def left_over(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if step_of(path.name) is None)


@pytest.mark.parametrize("world_size", [1, 3])
def test_what_ranks_save_together_is_read_back_whole(tmp_path: Path, world_size: int) -> None:
    writers = write(tmp_path, 5, world_size=world_size, state={"tokens": 77, "rng": [1, 2]})
    assert {writer.last_verified for writer in writers} == {5}
    checkpoint = Checkpoint(tmp_path / "step-00000005")
    checkpoint.verify()
    assert checkpoint.state == {"tokens": 77, "rng": [1, 2]}
    assert (checkpoint.step, checkpoint.world_size) == (5, world_size)
    assert checkpoint.names() == sorted(SHAPES)
    for name in SHAPES:
        assert checkpoint.kinds(name) == sorted(KINDS)
        for kind in KINDS:
            assert torch.equal(checkpoint.tensor(name, kind), values(name, kind, 5))
    assert [checkpoint.rank_state(rank) for rank in range(world_size)] == [{"of_rank": r} for r in range(world_size)]
    assert left_over(tmp_path) == []


def test_the_stock_safetensors_library_reads_the_files(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, 0, 1, asynchronous=False)
    whole = values("layers.0.cube", "weight")
    half = torch.randn(17).bfloat16()  # odd length before fp32 data: the order of the entries must keep fp32 aligned
    pieces = [
        (Piece("half", "weight", (9, 4), (0, 0), (9, 4), 3, 20), half),
        (Piece.whole("cube", "weight", (3, 4, 2)), whole),
        (Piece("box", "exp_avg", (6, 2), (0, 1), (6, 1), 0, 6), whole.reshape(-1)[:6]),
        (Piece.whole("scalar", "weight", ()), torch.tensor(2.5)),
    ]
    writer.save(1, pieces, {})
    with safe_open(tmp_path / "step-00000001" / "rank-00000.safetensors", "pt") as file:
        read = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    assert torch.equal(read["weight/cube"], whole)
    assert torch.equal(read["weight/half[flat 3:20]"], half)
    assert torch.equal(read["exp_avg/box[0:6,1:2]"], whole.reshape(-1)[:6].view(6, 1))
    assert torch.equal(read["weight/scalar"], torch.tensor(2.5))
    assert len(read) == 4


def test_the_manifest_lists_every_file_with_its_size_and_checksum(tmp_path: Path) -> None:
    write(tmp_path, 5)
    folder = tmp_path / "step-00000005"
    manifest = json.loads((folder / "manifest.json").read_text())
    present = {path.name for path in folder.iterdir()} - {"manifest.json", "manifest.json.sha256"}
    assert set(manifest["files"]) == present
    assert len(present) == 4
    for name, about in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert about == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_tensors_and_state_may_change_as_soon_as_save_returns(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, 0, 1)
    tensor = torch.arange(1 << 20).float()
    piece = Piece.whole("w", "weight", (1 << 20,))
    state = {"rng": [1]}
    for step in (1, 2):  # the second save reuses the first one's buffer
        stall = writer.save(step, [(piece, tensor)], state)
        assert 0 < stall < 5
        tensor += 1000
        state["rng"].append(step)
    writer.wait()
    for step, first, rng in ((1, 0, [1]), (2, 1000, [1, 1])):
        checkpoint = Checkpoint(tmp_path / f"step-{step:08d}")
        assert torch.equal(checkpoint.tensor("w"), torch.arange(1 << 20).float() + first)
        assert checkpoint.state == {"rng": rng}


def test_a_step_reached_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 5, 6, state={"try": 1})
    write(tmp_path, 5, state={"try": 2})
    assert steps(tmp_path) == [6, 5]
    assert Checkpoint(tmp_path / "step-00000005").state == {"try": 2}
    assert left_over(tmp_path) == []


def test_a_replacement_that_a_crash_cut_in_two_is_undone_by_the_next_writer(tmp_path: Path) -> None:
    write(tmp_path, 5)
    (tmp_path / "step-00000005").rename(tmp_path / ".step-00000005.replaced")
    (tmp_path / ".step-00000007.partial").mkdir()
    (tmp_path / ".step-00000004.deleted").mkdir()
    (tmp_path / ".step-00000003.failed").write_text("{}")
    writer = CheckpointWriter(tmp_path, 0, 1)
    assert writer.last_verified == 5
    assert steps(tmp_path) == [5]
    Checkpoint(tmp_path / "step-00000005").verify()
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("full_rank", [0, 1])
def test_a_full_disk_on_one_rank_fails_the_save_on_all_and_leaves_nothing(tmp_path: Path, full_rank: int) -> None:
    writers = write(tmp_path, 5)
    partial = tmp_path / ".step-00000006.partial"
    partial.mkdir()
    (partial / f"rank-{full_rank:05d}.safetensors").symlink_to("/dev/full")  # ENOSPC from the kernel itself
    for rank, writer in enumerate(writers):
        writer.save(6, share(rank, 2, 6), {})
    for writer in writers:
        with pytest.raises(
            SaveFailed, match=r"step 6 was not written: .*No space left.* step 5 is still good"
        ) as caught:
            writer.wait()
        assert caught.value.exit_code == 1
        assert "\n" not in str(caught.value)
        assert writer.last_verified == 5
        writer.wait()  # told once
    assert steps(tmp_path) == [5]
    assert not (partial / "manifest.json").exists()
    for rank, writer in enumerate(writers):  # room again: the same step can be saved after all
        (partial / f"rank-{rank:05d}.safetensors").unlink(missing_ok=True)
        writer.save(6, share(rank, 2, 6), {})
    for writer in writers:
        writer.wait()
    Checkpoint(tmp_path / "step-00000006").verify()
    write(tmp_path, 7)
    assert left_over(tmp_path) == []


def test_a_device_error_while_flushing_is_reported_and_nothing_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 5, world_size=1)
    writer = CheckpointWriter(tmp_path, 0, 1)

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    writer.save(6, share(0, 1, 6), {})
    with pytest.raises(SaveFailed, match="step 6 was not written: Input/output error"):
        writer.save(7, share(0, 1, 7), {})
    with pytest.raises(SaveFailed, match="step 7 was not written: Input/output error"):
        writer.wait()
    assert steps(tmp_path) == [5]
    assert not [name for name in left_over(tmp_path) if name.endswith(".partial")]


def test_a_rank_that_never_comes_is_named_when_the_deadline_is_over(tmp_path: Path) -> None:
    first, late = (CheckpointWriter(tmp_path, rank, 2, deadline_seconds=0.3) for rank in (0, 1))
    first.save(6, share(0, 2, 6), {})
    with pytest.raises(SaveFailed, match=r"after 0.3 s the files of rank 1 are still missing; there is none before it"):
        first.wait()
    late.deadline_seconds = 30
    late.save(6, share(1, 2, 6), {})  # too late: rank 0 has given up, and says so
    with pytest.raises(SaveFailed, match="files of rank 1 are still missing"):
        late.wait()
    assert steps(tmp_path) == []
    for rank, writer in enumerate((first, late)):
        writer.deadline_seconds = 30
        writer.save(6, share(rank, 2, 6), {})
    for writer in (first, late):
        writer.wait()
    Checkpoint(tmp_path / "step-00000006").verify()


def test_a_rank_whose_rank_0_vanished_does_not_wait_for_ever(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, 1, 2, deadline_seconds=0.2)
    writer.save(6, share(1, 2, 6), {})
    with pytest.raises(SaveFailed, match=r"rank 0 did not complete it within 0.4 s"):
        writer.wait()


def test_a_rank_that_was_still_writing_learns_why_rank_0_gave_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, slow = write(tmp_path, 5)
    (tmp_path / ".step-00000006.partial").mkdir()
    (tmp_path / ".step-00000006.partial" / "rank-00000.safetensors").symlink_to("/dev/full")
    write_hashed = fmt.write_hashed

    def after_rank_0(path: Path, *buffers: bytes | memoryview) -> dict:
        if path.name == "rank-00001.json":  # its tensors are written, its record is not
            with pytest.raises(SaveFailed):
                first.wait()
        return write_hashed(path, *buffers)

    monkeypatch.setattr(fmt, "write_hashed", after_rank_0)
    first.save(6, share(0, 2, 6), {})
    slow.save(6, share(1, 2, 6), {})
    with pytest.raises(SaveFailed, match="step 6 was not written: No space left on device"):
        slow.wait()


def test_a_rank_that_learns_late_of_a_failure_still_takes_part_in_the_next_save(tmp_path: Path) -> None:
    writers = write(tmp_path, 5)
    partial = tmp_path / ".step-00000006.partial"
    partial.mkdir()
    (partial / "rank-00001.safetensors").symlink_to("/dev/full")
    for rank, writer in enumerate(writers):
        writer.save(6, share(rank, 2, 6), {})
    with pytest.raises(SaveFailed):
        writers[0].wait()
    writers[0].save(7, share(0, 2, 7), {})
    with pytest.raises(SaveFailed, match="step 6 was not written"):
        writers[1].save(7, share(1, 2, 7), {})  # only now does rank 1 hear of it
    for writer in writers:
        writer.wait()
    Checkpoint(tmp_path / "step-00000007").verify()


def test_save_that_another_rank_has_given_up_is_let_go_at_once(tmp_path: Path) -> None:
    writers = [CheckpointWriter(tmp_path, rank, 2, deadline_seconds=30.0) for rank in (0, 1)]
    for number, (giving_up, waiting) in enumerate([writers, writers[::-1]]):
        waiting.save(6, share(waiting.rank, 2, 6), {})  # the other's part never comes, and no file says so
        giving_up._serial += 1
        assert not waiting.drop(number, "an older one")
        assert not waiting.settles(0.1)
        assert waiting.drop(number + 1, "the storage was away")
        assert waiting.settles(5.0)
        with pytest.raises(SaveFailed, match="step 6 was not written: the storage was away"):
            waiting.wait()
        assert waiting.failed == (number + 1, "the storage was away")
        assert [name for name in left_over(tmp_path) if name.endswith(".partial")] == []
    for rank, writer in enumerate(writers):
        writer.save(6, share(rank, 2, 6), {})
    for writer in writers:
        writer.wait()
    Checkpoint(tmp_path / "step-00000006").verify()
    assert left_over(tmp_path) == []


def test_malformed_pieces_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, 0, 1)
    piece = Piece.whole("w", "weight", (4,))
    for pieces, complaint in (
        ([(piece, torch.zeros(3))], "3 elements for a piece of 4"),
        ([(piece, torch.zeros(4, dtype=torch.int64))], "float32 and bfloat16"),
        ([(piece, torch.zeros(4)), (piece, torch.ones(4))], "given twice"),
    ):
        with pytest.raises(ValueError, match=complaint):
            writer.save(1, pieces, {})
    with pytest.raises(TypeError):
        writer.save(1, [(piece, torch.zeros(4))], {"not": object()})
    writer.wait()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveFailed, match=r"cannot be written to .*: Not a directory"):
        CheckpointWriter(tmp_path / "file" / "checkpoints", 0, 1)


def test_retention_keeps_the_last_the_best_and_every_mth(tmp_path: Path) -> None:
    losses = {10: 3.0, 20: 2.0, 30: float("nan"), 40: 2.5, 50: 2.6, 60: None}
    writer = CheckpointWriter(tmp_path, 0, 1, asynchronous=False, retention=Retention(keep=2, keep_every=30))
    for step, loss in losses.items():
        writer.save(step, share(0, 1, step), {"validation_loss": loss})
    assert steps(tmp_path) == [60, 50, 30, 20]
    assert left_over(tmp_path) == []
    writer = CheckpointWriter(tmp_path, 0, 1, asynchronous=False, retention=Retention(keep=1, keep_best=False))
    writer.save(15, share(0, 1), {})  # a run that went back: the one just written stays, whatever its number
    assert steps(tmp_path) == [60, 15]


def test_retention_leaves_alone_what_it_cannot_read(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    (tmp_path / "step-00000001" / "manifest.json").write_text("")
    write(tmp_path, 3, 4, retention=Retention(keep=1))
    assert steps(tmp_path) == [4, 1]


@pytest.mark.parametrize(
    ("losses", "retention", "surplus"),
    [
        ({}, Retention(), []),
        ({1: None}, Retention(keep=1), []),
        ({1: 5.0, 2: 5.0, 3: 6.0}, Retention(keep=1), [1]),  # of equals the later is the best
        ({1: 1.0, 2: 5.0, 3: 6.0}, Retention(keep=1, keep_best=False), [1, 2]),
        ({1: float("-inf"), 2: 5.0, 3: 6.0}, Retention(keep=1), [1]),  # not a loss
        ({100: 9.0, 150: 8.0, 200: 7.0, 250: 6.0, 300: 5.0}, Retention(keep=1, keep_every=100), [150, 250]),
    ],
)
def test_surplus_by_hand(losses: dict[int, float | None], retention: Retention, surplus: list[int]) -> None:
    assert retention.surplus(losses) == surplus


def test_storage_that_hangs_is_told_and_the_next_save_works_when_it_answers(tmp_path: Path) -> None:
    partial = tmp_path / ".step-00000005.partial"
    writer = CheckpointWriter(tmp_path, 0, 1, deadline_seconds=30.0)
    partial.mkdir()
    os.mkfifo(partial / "rank-00000.safetensors")  # opening it for writing hangs, as a dead mount does
    writer.save(5, share(0, 1), {})
    assert not writer.settles(0.1)
    writer.check()  # no error yet, and no wait
    assert writer.last_verified is None
    read = (partial / "rank-00000.safetensors").read_bytes()  # the mount is back: a pipe cannot be flushed to a disk
    assert len(read) > 0
    assert writer.settles(30.0)
    with pytest.raises(SaveFailed, match="step 5 was not written"):
        writer.wait()
    writer.save(10, share(0, 1), {})
    writer.wait()
    Checkpoint(tmp_path / "step-00000010").verify()
