"""Shards behind a URL: the same samples as from a folder, whatever the network, the cache or the other ranks do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from data_pipeline import retrying
from data_pipeline.config import CacheConfig, DataConfig, ShardSource
from data_pipeline.errors import BadShards, BadTokenizer, DamagedShard
from data_pipeline.locations import anchored, is_remote
from data_pipeline.prefetch import Prefetcher
from data_pipeline.shard_reader import ShardSet
from data_pipeline.stream import Stream, ValidationSet
from tests.data_pipeline.range_server import Kind, Server, serving
from tests.data_pipeline.shard_sets import flip_a_bit, mix, write_set

REPOSITORY = Path(__file__).parents[2]
HURRIED = retrying.Patience(attempts=5, first_pause=0.001, total=20.0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Serves web (20 members in 7 tars), books and a tokenizer.model."""
    root = tmp_path / "served" / "shards"
    write_set(root / "web", 158, rows=8)
    write_set(root / "books", 50, rows=6, seed=1)
    (root / "tokenizer.model").write_bytes(b"a tokenizer")
    with serving(tmp_path / "served") as running:
        yield running


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without the pauses between them, and stalls that are over soon."""
    monkeypatch.setattr("data_pipeline.shard_store.REMOTE", HURRIED)
    monkeypatch.setattr("data_pipeline.remote_members.REMOTE", HURRIED)
    monkeypatch.setattr("data_pipeline.shard_store.TIMEOUT_SECONDS", 0.3)


def remote(base: str, tmp_path: Path, size: str = "1 GB", **weights: float) -> DataConfig:
    """The same mix by URL, with a cache of its own."""
    sources = [ShardSource(f"{base}/shards/{name}", weight) for name, weight in weights.items()]
    return DataConfig(mix=sources, cache=CacheConfig(str(tmp_path / "cache"), size))


def local(tmp_path: Path, **weights: float) -> DataConfig:
    return dataclasses.replace(mix(tmp_path / "served" / "shards", **weights), shuffle="windowed")


def entries(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "cache" / "entries").rglob("*") if path.is_file())


# -- the same samples -------------------------------------------------------------------------------------------------


def test_a_remote_mix_gives_the_local_one_with_one_request_a_file_and_one_a_member(
    server: Server, tmp_path: Path
) -> None:
    there = Stream(local(tmp_path, web=0.7, books=0.3), 1)
    config = remote(server.url, tmp_path, web=0.7, books=0.3)
    here, again = Stream(config, 1), Stream(config, 1)  # a worker opens its stream twice
    assert here.fingerprint() == there.fingerprint()
    with Prefetcher(here, [(16 * n, 16) for n in range(30)]) as ahead:
        for number, batch in enumerate(ahead):
            assert np.array_equal(batch.tokens, there.batch(16 * number, 16).tokens)
    assert np.array_equal(again.batch(0, 300).tokens, there.batch(0, 300).tokens)
    assert again.tokenizer_path.read_bytes() == b"a tokenizer"
    assert np.array_equal(here._sets[0].counts(), there._sets[0].counts())
    for name, members in (("web", 20), ("books", 9)):
        assert server.asked(f"{name}/manifest.json") == server.asked(f"{name}/index.npy") == 1
        asked = [ranged for path, ranged in server.requests if f"/{name}/0" in path]
        assert len(asked) == members and None not in asked
    known = re.compile(r"/shards/((web|books)/(manifest\.json|index\.npy|counts\.npy|\d{5}\.tar)|tokenizer\.model)")
    assert all(known.fullmatch(path) for path, _ in server.requests), "something was listed or guessed"
    assert all(re.fullmatch("[0-9a-f]{64}", path.name) for path in entries(tmp_path)), "a name was made of a name"
    here.close()
    again.close()


def test_what_is_in_the_cache_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    config = remote(server.url, tmp_path, web=1)
    first = Stream(config, 1).batch(0, 158).tokens
    before = server.asked(".tar")
    assert np.array_equal(Stream(config, 1).batch(0, 158).tokens, first)
    assert server.asked(".tar") == before


def test_memory_and_held_out_sets_are_read_alike(tmp_path: Path) -> None:
    write_set(tmp_path / "served" / "shards" / "kept", 45, rows=8)
    files = fsspec.filesystem("memory")
    files.put(str(tmp_path / "served" / "shards"), "/lab", recursive=True)
    cache = CacheConfig(str(tmp_path / "cache"))
    held_out = ValidationSet([ShardSource("memory://lab/kept")], cache)
    expected = ValidationSet([ShardSource(str(tmp_path / "served" / "shards" / "kept"))])
    assert np.array_equal(held_out.batch(0, 45).tokens, expected.batch(0, 45).tokens)
    files.rm("/lab", recursive=True)


def test_moving_from_local_to_remote_is_noticed_with_the_setting_that_keeps_the_order(
    server: Server, tmp_path: Path
) -> None:
    plain = mix(tmp_path / "served" / "shards", web=1)
    config = remote(server.url, tmp_path, web=1)
    state = Stream(config, 1).state(40)
    with pytest.raises(Exception, match=r"windowed \(window 64\) and is full \(keep it: set data\.shuffle: windowed"):
        Stream.continuing(plain, 1, state)
    moved = Stream.continuing(dataclasses.replace(plain, shuffle="windowed"), 1, state)
    assert np.array_equal(moved.batch(40, 60).tokens, Stream(config, 1).batch(40, 60).tokens)


def test_members_are_fetched_ahead_of_the_batches_that_are_read(server: Server, tmp_path: Path) -> None:
    config = remote(server.url, tmp_path, web=1)
    stream = Stream(dataclasses.replace(config, shuffle_window=2), 1)
    requests = [(8 * n, 8) for n in range(19)]
    positions = [stream.locate(np.arange(start, start + size))[1] for start, size in requests]
    wanted = {int(m) for p in positions[:9] for m in p // 8}
    beyond = {int(m) for p in positions[3:9] for m in p // 8} - {int(m) for p in positions[:3] for m in p // 8}
    assert len(beyond) > 3
    with Prefetcher(stream, requests, depth=1) as ahead, server.lock:  # nothing is consumed
        assert server.lock.wait_for(lambda: len({r for r in server.requests if ".tar" in r[0]}) >= len(wanted), 30)
        assert not ahead._finished


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unavailable", "truncate", "short", "corrupt", "stall", "hang_up"])
def test_failures_that_pass_leave_no_trace(server: Server, tmp_path: Path, kind: Kind, hurried: None) -> None:
    expected = Stream(local(tmp_path, web=1), 1).batch(0, 158).tokens
    for path in ("manifest.json", "index.npy", "00000.tar", "00003.tar"):
        if not (path == "manifest.json" and kind in ("short", "corrupt")):  # nothing says what a manifest should be
            server.fail(kind, path, times=2)
    assert np.array_equal(Stream(remote(server.url, tmp_path, web=1), 1).batch(0, 158).tokens, expected)
    assert server.asked("00003.tar") == 3 + 2


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("unavailable", "503"),
        ("corrupt", "it fails its CRC"),
        ("short", "bytes came instead of"),
        ("stall", r"no answer within 0 s"),
    ],
)
def test_failures_that_stay_name_member_tar_and_url_after_five_attempts(
    server: Server, tmp_path: Path, kind: Kind, why: str, hurried: None
) -> None:
    server.fail(kind, "00002.tar")
    shards = ShardSet(f"{server.url}/shards/web", CacheConfig(str(tmp_path / "cache")))
    shards.read(np.arange(0, 48))
    said = rf"member 000000006\.npy of {server.url}/shards/web/00002\.tar cannot be read: .*{why}.* \(5 attempts in"
    with pytest.raises(DamagedShard, match=said) as caught:
        shards.read(np.array([51]))
    assert sum(path.endswith("00002.tar") for path, _ in server.requests) == 5
    assert "\n" not in str(caught.value) and caught.value.exit_code == 1


def test_pauses_between_attempts_double_with_jitter_and_are_bounded_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses = [0.0], []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(retrying.time, "sleep", sleep)
    monkeypatch.setattr(retrying.time, "monotonic", lambda: now[0])

    def fail(seconds: float) -> None:
        now[0] += seconds
        raise OSError("no")

    with pytest.raises(DamagedShard, match=r"it cannot be read: no \(5 attempts"):
        retrying.REMOTE.attempt("it", lambda: fail(0.0))
    assert len(pauses) == 4 and all(0.5 <= pause / (0.5 * 2**n) <= 1.5 for n, pause in enumerate(pauses))
    assert len({round(pause / 2**n, 6) for n, pause in enumerate(pauses)}) == 4, "no jitter"
    now[0], pauses[:] = 0.0, []
    with pytest.raises(DamagedShard, match=r"\(3 attempts"):
        retrying.REMOTE.attempt("it", lambda: fail(35.0))
    assert now[0] < 120


def test_what_is_not_there_is_told_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(BadShards, match=r"/shards/none is no shard set \(manifest\.json: "):
        Stream(remote(server.url, tmp_path, none=1), 1)
    assert server.asked("none/manifest.json") == 1
    (server.root / "shards" / "tokenizer.model").unlink()
    with pytest.raises(BadTokenizer, match=rf"there is no {server.url}/shards/tokenizer\.model"):
        _ = Stream(remote(server.url, tmp_path, web=1), 1).tokenizer_path
    (server.root / "shards" / "web" / "00001.tar").unlink()
    with pytest.raises(DamagedShard, match=r"member 00000000\d\.npy of .*/00001\.tar cannot be read: "):
        Stream(remote(server.url, tmp_path, web=1), 1).batch(0, 158)


def test_a_server_without_ranges_is_named(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    with pytest.raises(BadShards, match="does not answer range requests"):
        Stream(remote(server.url, tmp_path, web=1), 1).batch(0, 8)


def test_damaged_members_are_replaced_as_those_of_a_folder_are(server: Server, tmp_path: Path, hurried: None) -> None:
    for member in (2, 11):
        flip_a_bit(server.root / "shards" / "web", member)
    (server.root / "shards" / "web" / "00002.tar").unlink()
    config = dataclasses.replace(remote(server.url, tmp_path, web=1), on_damaged="substitute")
    stream = Stream(config, 1)
    found = stream.batch(0, 158).tokens
    there = Stream(dataclasses.replace(local(tmp_path, web=1), on_damaged="substitute"), 1)
    assert np.array_equal(found, there.batch(0, 158).tokens)
    stream.substitute(stream.found_damage())
    state = json.loads(json.dumps(stream.state(158)))
    assert [e["member"] for e in state["exceptions"]] == [2, 6, 7, 8, 11]
    asked = server.asked(".tar")
    assert np.array_equal(Stream.continuing(config, 1, state).batch(0, 158).tokens, found)
    assert server.asked(".tar") == asked, "the damaged members were touched"


# -- the cache --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied"])
def test_a_damaged_copy_is_found_and_fetched_again(server: Server, tmp_path: Path, damage: str) -> None:
    config = remote(server.url, tmp_path, web=1)
    expected = Stream(config, 1).batch(0, 158).tokens
    before = server.asked(".tar")
    for path in entries(tmp_path):  # the index is among them
        content = path.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"flipped": flipped, "truncated": content[:-5], "emptied": b""}[damage])
    assert np.array_equal(Stream(config, 1).batch(0, 158).tokens, expected)
    assert server.asked(".tar") == before + 20 and server.asked("index.npy") == 2


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "location",
    [
        "pipe:curl http://x/shards",
        "pipe://cat x",
        "ftp://host/shards",
        "file:///etc",
        "simplecache::s3://bucket/x",
        "s3://bucket/x.zip::memory://y",
        "http:/host/x",
        "github://a:b@c/x",
        "C:/shards",
    ],
)
def test_other_schemes_are_refused(location: str, tmp_path: Path) -> None:
    with pytest.raises(BadShards, match="shards are read from folders, s3://, gs://, http:// and https:// alone"):
        Stream(DataConfig(mix=[ShardSource(location)]), 1)


def test_locations_are_told_apart() -> None:
    assert is_remote("s3://bucket/web") and is_remote("gs://bucket/web") and is_remote("https://host/web")
    assert not is_remote("shards/web") and not is_remote("/data/a:b") and not is_remote("./a:b")
    assert anchored("s3://bucket/web") == "s3://bucket/web" and Path(anchored("shards/web")).is_absolute()
    with pytest.raises(BadShards, match="has no query"):
        is_remote("https://host/web?signature=x")


@pytest.mark.parametrize(("url", "package"), [("s3://bucket/web", "s3fs"), ("gs://bucket/web", "gcsfs")])
def test_a_package_that_is_missing_is_named(
    url: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, url.partition(":")[0], raising=False)
    with pytest.raises(BadShards, match=f"{url} needs the Python package {package}: pip install {package}"):
        ShardSet(url, CacheConfig(str(tmp_path)))


@pytest.mark.parametrize("name", ["../books/00000.tar", "/etc/passwd", "..", "", "a/b.tar", ".hidden"])
def test_a_manifest_that_names_files_elsewhere_is_refused(server: Server, tmp_path: Path, name: str) -> None:
    path = server.root / "shards" / "web" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["tars"][0]["file"] = name
    path.write_text(json.dumps(manifest))
    with pytest.raises(BadShards, match="names a file outside its folder"):
        Stream(remote(server.url, tmp_path, web=1), 1)
    assert server.asked("manifest.json") == len(server.requests)


def test_an_index_that_points_outside_its_tar_is_damage(tmp_path: Path) -> None:
    write_set(tmp_path / "web", 78, rows=8)
    index = np.load(tmp_path / "web" / "index.npy")
    index[4, 1] = 10**12
    np.save(tmp_path / "web" / "index.npy", index)
    manifest = json.loads((tmp_path / "web" / "manifest.json").read_text())
    manifest["index_sha256"] = hashlib.sha256((tmp_path / "web" / "index.npy").read_bytes()).hexdigest()
    (tmp_path / "web" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedShard, match=r"index\.npy puts member 000000004\.npy outside its tar"):
        ShardSet(tmp_path / "web").read(np.array([33]))
