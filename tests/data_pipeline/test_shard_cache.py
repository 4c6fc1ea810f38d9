"""The node's cache: within its limit, one fetch for all, whatever is killed at whatever moment."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import CacheConfig, ShardSource
from data_pipeline.errors import BadConfig, EnvironmentFailure
from data_pipeline.shard_cache import ShardCache, locked, open_cache, parse_size
from data_pipeline.stream import Stream
from tests.data_pipeline.range_server import serving
from tests.data_pipeline.shard_sets import mix, write_set

REPOSITORY = Path(__file__).parents[2]


def entries(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "cache" / "entries").rglob("*") if path.is_file())


def test_the_cache_stays_within_its_limit_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", limit=10_000)

    def use(number: int) -> bool:
        """Whether it had to be fetched."""
        fetched = []
        content = bytes([number]) * 900
        os.close(cache.open(f"{number:064x}", lambda: fetched.append(number) or content))  # type: ignore[func-returns-value]
        return bool(fetched)

    for number in range(40):
        assert use(number)
        assert not use(0) or number == 0, "what is used all the time was evicted"
        assert sum(path.stat().st_size for path in entries(tmp_path)) <= 10_000
    assert len(entries(tmp_path)) >= 8
    (tmp_path / "cache" / "size").write_bytes(b"")  # a process was killed just then
    assert use(99) and sum(path.stat().st_size for path in entries(tmp_path)) <= 10_000
    with pytest.raises(BadConfig, match=r"data\.cache\.size is 10000 bytes, but a single entry has 10001"):
        cache.open("f" * 64, lambda: bytes(10_001))


def test_an_entry_that_is_evicted_can_be_read_by_who_has_it_open(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", limit=1000)
    descriptor = cache.open("a" * 64, lambda: b"kept" * 200)
    os.close(cache.open("b" * 64, lambda: bytes(900)))
    assert not cache.has("a" * 64) and os.pread(descriptor, 4, 796) == b"kept"
    os.close(descriptor)


def test_one_of_many_fetches_and_the_others_wait_for_it(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", limit=10_000)
    begun, go, fetched = threading.Event(), threading.Event(), []

    def fetch() -> bytes:
        fetched.append(1)
        begun.set()
        assert go.wait(30)
        return b"content"

    found: list[bytes] = []

    def use() -> None:
        descriptor = cache.open("c" * 64, fetch)
        found.append(os.pread(descriptor, 100, 0))
        os.close(descriptor)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    go.set()
    for thread in threads:
        thread.join()
    assert found == [b"content"] * 6 and len(fetched) == 1


def test_a_failed_fetch_leaves_nothing_and_the_next_may_succeed(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", limit=10_000)
    with pytest.raises(ZeroDivisionError):
        cache.open("d" * 64, lambda: bytes(1 // 0))
    assert entries(tmp_path) == [] and list((tmp_path / "cache" / "drafts").iterdir()) == []
    os.close(cache.open("d" * 64, lambda: b"x"))


@pytest.mark.parametrize(
    ("text", "value"), [("20 GB", 20 * 10**9), ("1.5MB", 1_500_000), ("3 GiB", 3 * 2**30), ("100 kB", 10**5), ("7B", 7)]
)
def test_sizes_are_read(text: str, value: int) -> None:
    assert parse_size(text) == value


def test_a_size_that_is_none_and_a_folder_that_cannot_be_made_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadConfig, match='size is "much"; write it as 20 GB'):
        open_cache(CacheConfig(str(tmp_path), "much"))
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFailure, match=r"cannot be made: .*; name a folder in data\.cache\.directory"):
        open_cache(CacheConfig(str(tmp_path / "file" / "cache")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert open_cache(CacheConfig()).directory == tmp_path / "home" / "trestle" / "shards"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    assert open_cache(CacheConfig()).directory == tmp_path / "temporary" / f"trestle-shards-{os.getuid()}"


def test_processes_share_a_tiny_cache_and_one_that_is_killed_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    """Members of 4.6 kB, a limit of eleven of them: each process evicts what the others fetch."""
    write_set(tmp_path / "served" / "web", 640, rows=32, length=72, members_per_tar=5)
    limit, seeds = 50_000, (1, 2)
    config = mix(tmp_path / "served", web=1)
    expected = {}
    for seed in seeds:
        digest = hashlib.sha256()
        for start in range(0, 16 * 40, 16):
            digest.update(Stream(config, seed).batch(start, 16).tokens.tobytes())
        expected[seed] = digest.hexdigest()
    with serving(tmp_path / "served") as server:

        def start(seed: int, batches: int) -> subprocess.Popen[str]:
            words = [f"{server.url}/web", str(tmp_path / "cache"), f"{limit} B", str(batches), str(seed)]
            command = [sys.executable, "-m", "tests.data_pipeline.cache_user", *words]
            return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)

        victim, *others = start(3, 10**6), *(start(seed, 40) for seed in seeds)
        largest = 0
        try:
            for process in (victim, *others):
                assert process.stdout is not None and process.stdout.readline() == "ready\n"
            drafts, asked = tmp_path / "cache" / "drafts", server.asked(".tar")
            with server.lock:
                assert server.lock.wait_for(lambda: sum(".tar" in p for p, _ in server.requests) > asked + 50, 60)
            victim.send_signal(signal.SIGKILL)
            while any(process.poll() is None for process in others):
                largest = max(largest, bytes_in(tmp_path / "cache"))
                with server.lock:
                    server.lock.wait(0.01)  # until the next request
            outputs = {seed: process.communicate(timeout=60)[0] for seed, process in zip(seeds, others, strict=True)}
        finally:
            for process in (victim, *others):
                process.kill()
                process.wait()
                assert process.stdout is not None
                process.stdout.close()
        assert {seed: output.strip() for seed, output in outputs.items()} == expected
        assert [process.returncode for process in others] == [0, 0]
        assert 0 < largest <= limit
        after = Stream(
            dataclasses.replace(
                config,
                mix=[ShardSource(f"{server.url}/web")],
                cache=CacheConfig(str(tmp_path / "cache"), f"{limit} B"),
                shuffle="full",
            ),
            1,
        )
        assert np.array_equal(after.batch(0, 640).tokens, Stream(config, 1).batch(0, 640).tokens)
        after.close()
    assert list(drafts.iterdir()) == [], "the killed process's drafts are still there"


def bytes_in(cache: Path) -> int:
    """What entries and drafts hold, while nothing is added or evicted."""
    with locked(cache / "lock"):
        paths = [*(cache / "entries").glob("*/*"), *(cache / "drafts").iterdir()]
        total = 0
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # a draft that has just become an entry
                total += path.stat().st_size
        return total


def test_a_draft_counts_while_its_writer_lives_and_goes_with_it(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", limit=1000)
    draft = tmp_path / "cache" / "drafts" / "half-written"
    draft.write_bytes(bytes(600))
    with open(draft, "rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        os.close(cache.open("a" * 64, lambda: bytes(300)))
        os.close(cache.open("b" * 64, lambda: bytes(300)))
        assert draft.exists() and [path.name for path in entries(tmp_path)] == ["b" * 64], "room was made for all three"
    os.close(cache.open("c" * 64, lambda: bytes(600)))
    assert not draft.exists()
    os.close(cache.open("b" * 64, lambda: bytes(300)))
    assert len(entries(tmp_path)) == 2
