"""A second home of checkpoints behind a URL: whole or not there, read in ranges, tried again until it works."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.retrying import Patience
from tests.training.checkpoints import KINDS, SHAPES, share, values, write
from training.checkpoint import Checkpoint, CheckpointWriter, DamagedCheckpoint, Piece, Retention, candidates, set_aside
from training.checkpoint.remote import (
    RemoteFolder,
    RemoteSource,
    RemoteStore,
    StorageUnreachable,
    Uploader,
    is_checkpoint_url,
    source,
    store,
)
from training.errors import RecipeError

WORLD = 2
DEADLINE = 120.0
SQUARE = (1024, 1024)


def wait_for(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < until, f"no {what} within {DEADLINE:.0f} s"
        time.sleep(0.01)  # the uploader's own thread works; it has no event for tests


def uploaders(tmp_path: Path, **options: Any) -> list[Uploader]:
    """Those of both ranks of a run in `run`, to the folder `store`."""
    options = {"retention": Retention(keep=100), "first_pause": 0.02, "longest_pause": 0.05} | options
    remote = str(tmp_path / "store")
    return [Uploader(RemoteFolder(remote, "demo"), tmp_path / "run", rank, WORLD, **options) for rank in range(WORLD)]


def offer(both: list[Uploader], step: int) -> None:
    for one in both:
        one.offer(step)


def told(both: list[Uploader]) -> list[tuple[str, Any]]:
    """The news of rank 0 so far: (event, step)."""
    found = []
    while not both[0].news.empty():
        event, fields = both[0].news.get()
        found.append((event, fields["step"]))
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "store").mkdir()
    (folder / "recipe.yaml").write_text("run: {name: demo}\n")
    (folder / "tokenizer.model").write_bytes(b"a tokenizer")
    return folder


def remote(tmp_path: Path) -> RemoteFolder:
    return RemoteFolder(str(tmp_path / "store"), "demo")


def test_uploaded_checkpoint_is_the_local_one_and_what_the_run_needs_lies_beside_it(tmp_path: Path, run: Path) -> None:
    write(run / "checkpoints", 10, world_size=WORLD)
    both = uploaders(tmp_path)
    offer(both, 10)
    wait_for(lambda: all(one.settled for one in both), "upload")
    there, here = tmp_path / "store" / "demo", run / "checkpoints" / "step-00000010"
    names = sorted(path.name for path in here.iterdir())
    assert names == sorted(path.name for path in (there / "checkpoints" / "step-00000010").iterdir())
    assert all((there / "checkpoints" / here.name / n).read_bytes() == (here / n).read_bytes() for n in names)
    assert (there / "recipe.yaml").read_text() == "run: {name: demo}\n"
    assert (there / "tokenizer.model").read_bytes() == b"a tokenizer"
    assert told(both) == [("uploaded", 10)]
    checkpoint = Checkpoint(remote(tmp_path).source("step-00000010"))
    checkpoint.verify()
    for name, kind in itertools.product(SHAPES, KINDS):
        assert torch.equal(checkpoint.tensor(name, kind), values(name, kind, 10))


def test_checkpoint_exists_there_only_when_every_rank_has_brought_its_files(tmp_path: Path, run: Path) -> None:
    write(run / "checkpoints", 10, world_size=WORLD)
    both = uploaders(tmp_path)
    both[0].offer(10)
    folder = tmp_path / "store" / "demo" / "checkpoints" / "step-00000010"
    wait_for(lambda: (folder / "rank-00000.json").exists(), "file of rank 0")
    assert not (folder / "manifest.json").exists()
    assert remote(tmp_path).newest(set()) is None
    assert not both[0].settled
    both[1].offer(10)
    wait_for(lambda: both[0].settled, "upload")
    assert remote(tmp_path).newest(set()) == "step-00000010"


def test_store_that_fails_is_tried_again_and_told_once_each_way(tmp_path: Path, run: Path) -> None:
    write(run / "checkpoints", 10, world_size=WORLD)
    (tmp_path / "store").rmdir()
    (tmp_path / "store").write_text("in the way of the folder")  # each attempt fails with a real error
    both = uploaders(tmp_path)
    offer(both, 10)
    wait_for(lambda: not both[0].news.empty(), "word of the failure")
    event, fields = both[0].news.get()
    assert event == "upload_failed"
    assert fields["step"] == 10
    write(run / "checkpoints", 20, world_size=WORLD)
    offer(both, 20)
    assert not both[0].settled
    assert both[0].waiting == "step-00000020"
    (tmp_path / "store").unlink()
    (tmp_path / "store").mkdir()
    wait_for(lambda: all(one.settled for one in both), "upload")
    news = told(both)
    assert news[-1] == ("uploaded", 20)
    assert {event for event, _ in news} == {"uploaded"}  # the older one may be superseded, which is no news
    assert remote(tmp_path).newest(set()) == "step-00000020"
    assert (run / "checkpoints" / "step-00000010").is_dir()


def test_failure_of_another_rank_is_told_by_rank_0(tmp_path: Path, run: Path) -> None:
    write(run / "checkpoints", 10, world_size=WORLD)
    in_the_way = tmp_path / "store" / "demo" / "checkpoints" / "step-00000010" / "rank-00001.safetensors"
    in_the_way.mkdir(parents=True)
    both = uploaders(tmp_path)
    offer(both, 10)
    wait_for(lambda: not both[0].news.empty(), "word of the failure")
    event, fields = both[0].news.get()
    assert event == "upload_failed"
    assert "rank 1" in fields["reason"]
    in_the_way.rmdir()
    wait_for(lambda: all(one.settled for one in both), "upload")
    assert told(both) == [("uploaded", 10)]


def test_retention_holds_there_too(tmp_path: Path, run: Path) -> None:
    both = uploaders(tmp_path, retention=Retention(keep=2))
    (tmp_path / "store" / "demo" / "checkpoints" / "step-00000005").mkdir(parents=True)  # never became whole
    for step in (10, 20, 30):
        write(run / "checkpoints", step, world_size=WORLD)
        offer(both, step)
        wait_for(lambda: all(one.settled for one in both), "upload")
    wait_for(lambda: remote(tmp_path).names() == ["step-00000030", "step-00000020"], "retention")


def test_what_a_run_has_left_behind_is_withdrawn_and_replaced(tmp_path: Path, run: Path) -> None:
    write(run / "checkpoints", 10, 20, world_size=WORLD)
    both = uploaders(tmp_path)
    offer(both, 20)
    wait_for(lambda: all(one.settled for one in both), "upload")
    set_aside(run / "checkpoints" / "step-00000020", "a spike", "abandoned")
    for one in both:
        one.went_back(10)
    offer(both, 10)
    wait_for(lambda: all(one.settled for one in both), "upload")
    assert remote(tmp_path).newest(set()) == "step-00000010"
    write(run / "checkpoints", 20, world_size=WORLD, state={"another": "future"})
    offer(both, 20)
    wait_for(lambda: all(one.settled for one in both), "upload")
    checkpoint = Checkpoint(remote(tmp_path).source("step-00000020"))
    checkpoint.verify()
    assert checkpoint.state == {"another": "future"}


def test_what_an_earlier_process_uploaded_of_a_future_left_behind_is_withdrawn(tmp_path: Path, run: Path) -> None:
    there = tmp_path / "store" / "demo" / "checkpoints"
    write(there, 10, 20, 30, world_size=WORLD)
    write(run / "checkpoints", 10, world_size=WORLD)
    both = uploaders(tmp_path)
    for one in both:
        one.went_back(10)
    offer(both, 10)
    wait_for(lambda: all(one.settled for one in both), "upload")
    assert remote(tmp_path).newest(set()) == "step-00000010"
    write(run / "checkpoints", 20, world_size=WORLD)  # of the new future
    offer(both, 20)
    wait_for(lambda: all(one.settled for one in both), "upload")
    assert remote(tmp_path).newest(set()) == "step-00000020"


def test_place_whose_mount_is_away_is_no_empty_one_and_is_not_made(tmp_path: Path) -> None:
    away = RemoteFolder(str(tmp_path / "mount" / "runs"), "demo")
    with pytest.raises(StorageUnreachable, match="there is no such folder: mount it, or make it first"):
        away.newest(set())
    with pytest.raises(OSError, match="there is no such folder"):
        away.store.write("recipe.yaml", b"")
    assert not (tmp_path / "mount").exists()
    (tmp_path / "mount" / "runs").mkdir(parents=True)
    assert away.newest(set()) is None


def test_digest_that_is_a_link_is_damage(tmp_path: Path) -> None:
    write(tmp_path / "store" / "demo" / "checkpoints", 10, world_size=WORLD)
    digest = tmp_path / "store" / "demo" / "checkpoints" / "step-00000010" / "manifest.json.sha256"
    digest.rename(tmp_path / "elsewhere")
    digest.symlink_to(tmp_path / "elsewhere")
    there = remote(tmp_path)
    assert there.newest(set()) == "step-00000010"
    assert there.digest("step-00000010") == b""  # nobody's: an upload replaces it
    with pytest.raises(DamagedCheckpoint, match="not a file but a link"):
        Checkpoint(there.source("step-00000010")).verify()


def test_store_that_has_an_error_is_unreachable_and_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "store" / "demo" / "checkpoints", 10, world_size=WORLD)

    def stale(path: Path) -> os.stat_result:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    there = remote(tmp_path)
    monkeypatch.setattr(Path, "lstat", stale)
    with pytest.raises(StorageUnreachable, match="cannot be read: Stale file handle"):
        there.newest(set())


def test_retention_here_leaves_what_is_being_uploaded(tmp_path: Path, run: Path) -> None:
    both = uploaders(tmp_path)
    writer = CheckpointWriter(run / "checkpoints", 0, 1, asynchronous=False, retention=Retention(keep=1))
    writer.in_use = both[0].in_hand
    writer.save(10, share(0, 1), {})
    both[0].offer(10)
    wait_for(lambda: both[0].in_hand() == "step-00000010", "begin of the upload")
    for step in (20, 30):
        writer.save(step, share(0, 1), {})
        both[0].offer(step)
    assert [path.name for path in candidates(run / "checkpoints")] == ["step-00000030", "step-00000010"]
    both[1].offer(10)
    wait_for(lambda: ("uploaded", 10) in told(both), "upload")
    both[1].offer(30)
    wait_for(lambda: both[0].settled, "upload")
    writer.save(40, share(0, 1), {})
    assert [path.name for path in candidates(run / "checkpoints")] == ["step-00000040"]


def test_defect_in_another_rank_is_told_and_tried_again(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run / "checkpoints", 10, world_size=WORLD)
    both = uploaders(tmp_path)
    defective = [True]
    upload = both[1].remote.store.upload

    def defect(path: Path, name: str) -> None:
        if defective:
            raise ZeroDivisionError("a defect")
        upload(path, name)

    monkeypatch.setattr(both[1].remote.store, "upload", defect)
    offer(both, 10)
    wait_for(lambda: not both[0].news.empty(), "word of the failure")
    event, fields = both[0].news.get()
    assert event == "upload_failed"
    assert "rank 1: ZeroDivisionError: a defect" in fields["reason"]
    defective.clear()
    wait_for(lambda: all(one.settled for one in both), "upload")
    assert told(both) == [("uploaded", 10)]


def test_another_number_of_ranks_uploads_what_was_written_before(tmp_path: Path, run: Path) -> None:
    write(run / "checkpoints", 10, world_size=5)
    both = uploaders(tmp_path)
    offer(both, 10)
    wait_for(lambda: all(one.settled for one in both), "upload")
    Checkpoint(remote(tmp_path).source("step-00000010")).verify()


@pytest.fixture
def matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Checkpoint, RemoteSource]:
    """A checkpoint of one matrix of 4 MiB behind a URL, and reads in ranges and blocks a hundred times smaller."""
    monkeypatch.setattr(source, "RANGE_BYTES", 256 << 10)
    monkeypatch.setattr(source, "BLOCK_BYTES", 16 << 10)
    whole = torch.arange(1 << 20, dtype=torch.float32)
    writer = CheckpointWriter(tmp_path / "store" / "demo" / "checkpoints", 0, 1, asynchronous=False)
    writer.save(1, [(Piece.whole("matrix", "weight", SQUARE), whole)], {})
    reading = remote(tmp_path).source("step-00000001")
    checkpoint = Checkpoint(reading)
    checkpoint.names()
    return checkpoint, reading


def test_reading_a_part_fetches_that_part_alone(matrix: tuple[Checkpoint, RemoteSource]) -> None:
    checkpoint, reading = matrix
    before = reading.bytes_read
    start, stop = 100_005, 500_007
    read = checkpoint.read(Piece("matrix", "weight", SQUARE, (0, 0), SQUARE, start, stop))
    assert torch.equal(read, torch.arange(start, stop, dtype=torch.float32))
    needless = reading.bytes_read - before - 4 * (stop - start)
    assert 0 <= needless <= 2 * source.BLOCK_BYTES  # of the blocks at both ends
    before = reading.bytes_read
    rows = checkpoint.read(Piece("matrix", "weight", SQUARE, (600, 0), (8, 1024), 0, 8 * 1024))
    assert torch.equal(rows, torch.arange(600 * 1024, 608 * 1024, dtype=torch.float32))
    assert reading.bytes_read - before == 4 * 8 * 1024
    columns = checkpoint.read(Piece("matrix", "weight", SQUARE, (0, 256), (1024, 2), 0, 2048))
    assert torch.equal(columns.view(1024, 2), torch.arange(1 << 20).float().view(SQUARE)[:, 256:258])


def test_small_pieces_share_requests_and_the_cache_is_bounded(matrix: tuple[Checkpoint, RemoteSource]) -> None:
    checkpoint, reading = matrix
    before = reading.bytes_read
    for row in range(0, 1024, 2):  # half of each 4 KiB row
        piece = Piece("matrix", "weight", SQUARE, (row, 0), (1, 512), 0, 512)
        assert float(checkpoint.read(piece)[0]) == row * 1024
    assert reading.bytes_read - before <= (4 << 20) + (32 << 10)
    assert len(reading._blocks) <= source.CACHED_BLOCKS


def test_damage_there_is_named(tmp_path: Path, run: Path) -> None:
    write(tmp_path / "store" / "demo" / "checkpoints", 10, world_size=WORLD)
    path = tmp_path / "store" / "demo" / "checkpoints" / "step-00000010" / "rank-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    checkpoint = Checkpoint(remote(tmp_path).source("step-00000010"))
    checkpoint.verify(0, 2)
    with pytest.raises(DamagedCheckpoint, match=r"rank-00001\.safetensors: checksum"):
        checkpoint.verify(1, 2)
    path.write_bytes(content[:-5])
    with pytest.raises(DamagedCheckpoint, match="truncated"):
        Checkpoint(remote(tmp_path).source("step-00000010")).verify()


@pytest.mark.parametrize("name", ["../recipe.yaml", "/etc/passwd", "a/../../b", "", "a//b", "."])
def test_no_name_leads_out_of_the_prefix(tmp_path: Path, name: str) -> None:
    place = RemoteStore(str(tmp_path / "store"))
    for act in (place.read, place.size, place.remove, place.remove_folder, lambda n: place.write(n, b"")):
        with pytest.raises(ValueError, match="leads out of"):
            act(name)


@pytest.mark.parametrize(
    "location",
    ["", "ftp://host/x", "pipe:rm -rf", "s3:bucket", "s3://", "s3://bucket/../x", "s3://b::zip://x", "https://h/x"],
)
def test_place_that_cannot_be_written_to_is_refused(location: str) -> None:
    with pytest.raises(RecipeError, match=r"checkpoint\.remote"):
        RemoteStore(location)


def test_checkpoint_urls_are_told_from_others() -> None:
    assert is_checkpoint_url("s3://bucket/runs/demo/checkpoints/step-00000200/")
    assert not is_checkpoint_url("s3://bucket/shards/web")
    assert not is_checkpoint_url("runs/demo/checkpoints/step-00000200")


def test_uploads_do_not_hold_the_training_up(tmp_path: Path, run: Path) -> None:
    write(run / "checkpoints", 10, world_size=WORLD)
    fifo = tmp_path / "store" / "demo" / "checkpoints" / "step-00000010" / "rank-00000.safetensors"
    fifo.parent.mkdir(parents=True)
    os.mkfifo(fifo)  # opening it for writing hangs, as a dead mount does
    both = uploaders(tmp_path)
    write(run / "checkpoints", 20, world_size=WORLD)
    begun = time.monotonic()
    offer(both, 10)
    offer(both, 20)
    assert time.monotonic() - begun < 60
    assert not both[0].settled
    reader = threading.Thread(target=fifo.read_bytes)
    reader.start()
    fifo_free(fifo, reader)
    wait_for(lambda: both[0].waiting is None, "upload")


def fifo_free(fifo: Path, reader: threading.Thread) -> None:
    """The mount is back: what hung is read to its end, and the place becomes an ordinary one."""
    reader.join(DEADLINE)
    assert not reader.is_alive()
    fifo.unlink()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "REMOTE", Patience(attempts=2, first_pause=0.01, total=1.0))


def test_link_out_of_a_remote_folder_is_damage(tmp_path: Path) -> None:
    write(tmp_path / "store" / "demo" / "checkpoints", 10, world_size=WORLD)
    folder = tmp_path / "store" / "demo" / "checkpoints" / "step-00000010"
    (folder / "rank-00001.safetensors").rename(tmp_path / "elsewhere")
    (folder / "rank-00001.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedCheckpoint, match="not a file but a link"):
        Checkpoint(remote(tmp_path).source("step-00000010")).verify()


def test_records_of_many_ranks_are_read_at_once_here_and_there(tmp_path: Path, run: Path) -> None:
    write(run / "checkpoints", 10, world_size=16)
    both = uploaders(tmp_path)
    offer(both, 10)
    wait_for(lambda: all(one.settled for one in both), "upload")
    reading = remote(tmp_path).source("step-00000010")
    records = tmp_path / "store" / "demo" / "checkpoints" / "step-00000010"
    for rank in range(16):
        (records / f"rank-{rank:05d}.json").unlink()  # what is not asked for is not missed
    assert torch.equal(Checkpoint(reading).tensor("embedding"), values("embedding", "weight", 10))
    together = run / "checkpoints" / "step-00000010" / "records.json"
    content = bytearray(together.read_bytes())
    content[40] ^= 1  # a copy that is damaged is no damage: the record itself is there
    together.write_bytes(content)
    assert torch.equal(Checkpoint(together.parent).tensor("embedding"), values("embedding", "weight", 10))
