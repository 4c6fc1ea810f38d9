"""Shard sets on disk: packing loses nothing, the stock webdataset package reads them, damage is named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import BadShards, DamagedShard
from data_pipeline.packing import Packer, token_dtype
from data_pipeline.shard_reader import ShardSet
from data_pipeline.shards import ShardWriter, build_shards
from data_pipeline.tokenizer import Tokenizer

EOD = 1


@given(
    lengths=st.lists(st.integers(0, 50), max_size=30),
    sequence_length=st.integers(1, 20),
    rows=st.integers(1, 5),
)
def test_packing_can_be_undone(lengths: list[int], sequence_length: int, rows: int) -> None:
    generator = np.random.default_rng(len(lengths))
    documents = [generator.integers(2, 60_000, n).astype(np.int32) for n in lengths]
    packer = Packer(sequence_length, EOD, token_dtype(60_000), rows)
    blocks = list(packer.pack(iter(documents)))
    whole = np.concatenate([np.append(d, EOD) for d in documents]) if documents else np.zeros(0, dtype=np.int32)
    assert packer.tokens == len(whole)
    samples = max(0, len(whole) - 1) // sequence_length
    assert sum(len(block) for block in blocks) == samples
    assert all(len(block) == rows for block in blocks[:-1])
    if samples:
        packed = np.concatenate(blocks)
        for i, sample in enumerate(packed):
            assert np.array_equal(sample, whole[i * sequence_length : (i + 1) * sequence_length + 1])
        unpacked = np.append(packed[:, :-1].ravel(), packed[-1, -1])
        assert np.array_equal(unpacked, whole[: len(whole) - packer.dropped])
    else:
        assert packer.dropped == len(whole)


def test_tokens_take_two_bytes_while_the_vocabulary_allows() -> None:
    assert token_dtype(65_536) == np.uint16 and token_dtype(65_537) == np.uint32


def write_set(directory: Path, rows: np.ndarray, members_per_tar: int = 2, vocab_size: int = 70_000) -> ShardSet:
    directory.mkdir()
    writer = ShardWriter(
        directory,
        name=directory.name,
        sequence_length=rows.shape[1] - 1,
        dtype=token_dtype(vocab_size),
        vocab_size=vocab_size,
        eod_id=EOD,
        tokenizer_sha256="0",
        members_per_tar=members_per_tar,
    )
    build_shards(writer, (rows[i : i + writer.rows] for i in range(0, len(rows), writer.rows)))
    writer.finish(tokens=rows.size, documents=1, bytes=1, counts=np.zeros(vocab_size, dtype=np.int64))
    return ShardSet(directory)


@pytest.fixture
def big(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Five members in three tars."""
    rows = np.random.default_rng(1).integers(0, 70_000, (1150, 1025)).astype(np.uint32)
    shard_set = write_set(tmp_path / "big", rows)
    assert shard_set.manifest["members"] == 5 and len(shard_set.manifest["tars"]) == 3
    return tmp_path / "big", rows


def test_stock_webdataset_reads_our_shards(big: tuple[Path, np.ndarray], shards: Path) -> None:
    directory, rows = big
    tars = sorted(str(path) for path in directory.glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=False).decode()
    assert np.array_equal(np.concatenate([sample["npy"] for sample in dataset]), rows)

    prepared = webdataset.WebDataset([str(shards / "tools" / "00000.tar")], shardshuffle=False).decode()
    own = ShardSet(shards / "tools")
    assert np.array_equal(np.concatenate([s["npy"] for s in prepared]), own.read(np.arange(len(own))))


def test_samples_are_read_from_any_place(big: tuple[Path, np.ndarray]) -> None:
    directory, rows = big
    positions = np.random.default_rng(2).integers(0, len(rows), 200)
    assert np.array_equal(ShardSet(directory).read(positions), rows[positions])
    with pytest.raises(IndexError):
        ShardSet(directory).read(np.array([len(rows)]))


def test_ten_thousand_tars_open_in_no_time_and_without_memory(tmp_path: Path) -> None:
    """5 TB as 10,000 tars of 512 members, of which only the last one is here."""
    rows = np.random.default_rng(1).integers(0, 70_000, (256 * 4, 1025)).astype(np.uint32)
    write_set(tmp_path / "set", rows, members_per_tar=4)
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    per_member, tars = manifest["rows_per_member"], 10_000
    last = np.load(tmp_path / "set" / "index.npy")[:4]
    index = np.zeros((tars * 512, 4), dtype="<i8")
    last[:, 0] = tars - 1
    index[-4:] = last
    np.save(tmp_path / "set" / "index.npy", index)
    (tmp_path / "set" / "00000.tar").rename(tmp_path / "set" / f"{tars - 1:05d}.tar")
    manifest |= {
        "tars": [{**manifest["tars"][0], "file": f"{tar:05d}.tar"} for tar in range(tars)],
        "samples": tars * 512 * per_member,
        "members": tars * 512,
        "index_sha256": hashlib.sha256((tmp_path / "set" / "index.npy").read_bytes()).hexdigest(),
    }
    (tmp_path / "set" / "manifest.json").write_text(json.dumps(manifest))
    tracemalloc.start()
    began = time.perf_counter()
    shard_set = ShardSet(tmp_path / "set")
    found = shard_set.read(np.array([shard_set.samples - 4 * per_member]))
    seconds = time.perf_counter() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(found[0], rows[0])
    assert seconds < 2.0, f"{seconds:.2f} s"
    assert peak < 20_000_000, f"{peak} bytes"  # the manifest, and a byte a member


def test_more_tars_than_open_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.shard_members._OPEN_FILES", 2)
    rows = np.random.default_rng(1).integers(0, 70_000, (1150, 1025)).astype(np.uint32)
    shard_set = write_set(tmp_path / "set", rows, members_per_tar=1)
    before = len(os.listdir("/proc/self/fd"))
    for start in (0, 1, 2, 0):
        positions = np.arange(start, len(rows), 3)
        assert np.array_equal(shard_set.read(positions), rows[positions])
        assert len(os.listdir("/proc/self/fd")) <= before + 3  # two tars and the mapped index
    shard_set.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_flipped_bit_is_named_before_a_token_of_it_is_used(big: tuple[Path, np.ndarray]) -> None:
    directory, rows = big
    _, offset, _, _ = np.load(directory / "index.npy")[3].tolist()  # member 3, in 00001.tar
    tar = directory / "00001.tar"
    content = bytearray(tar.read_bytes())
    content[offset + 12345] ^= 4
    tar.write_bytes(content)
    shard_set = ShardSet(directory)
    per_member = shard_set.manifest["rows_per_member"]
    assert np.array_equal(shard_set.read(np.arange(per_member)), rows[:per_member])
    with pytest.raises(DamagedShard, match=r"00001\.tar is damaged: member 000000003\.npy fails its CRC") as error:
        shard_set.read(np.array([3 * per_member + 200]))  # another row of the damaged member
    assert error.value.exit_code == 1 and "\n" not in str(error.value)
    with pytest.raises(DamagedShard, match=r"00001\.tar"):
        shard_set.verify()


def test_missing_truncated_and_foreign_files_are_named(big: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    directory, rows = big
    last = np.array([len(rows) - 1])

    def copied(name: str) -> Path:
        return Path(shutil.copytree(directory, tmp_path / name))

    damaged = copied("truncated")
    os.truncate(damaged / "00002.tar", 1000)
    with pytest.raises(DamagedShard, match=r"00002\.tar has 1000 bytes"):
        ShardSet(damaged).read(last)
    damaged = copied("missing")
    (damaged / "00002.tar").unlink()
    with pytest.raises(DamagedShard, match=r"00002\.tar cannot be opened"):
        ShardSet(damaged).read(last)
    damaged = copied("index")
    content = bytearray((damaged / "index.npy").read_bytes())
    content[-1] ^= 1
    (damaged / "index.npy").write_bytes(content)
    with pytest.raises(DamagedShard, match=r"index\.npy is damaged"):
        ShardSet(damaged).read(last)
    damaged = copied("manifest")
    manifest = json.loads((damaged / "manifest.json").read_text())
    for change, message in [
        ("", "is no shard manifest"),
        ("[]", "is no shard manifest"),
        (json.dumps({**manifest, "format_version": 2}), "shard format 2"),
        (json.dumps({**manifest, "tars": [{"file": "../../etc/passwd"}]}), "outside its folder"),
    ]:
        (damaged / "manifest.json").write_text(change)
        with pytest.raises(BadShards, match=message):
            ShardSet(damaged)


def test_counts_and_totals_are_those_of_the_text(shards: Path) -> None:
    tokenizer = Tokenizer(shards / "tokenizer.model")
    for name in ("tools", "tools-validation"):
        shard_set = ShardSet(shards / name)
        counts = shard_set.counts()
        assert counts.sum() == shard_set.tokens
        assert counts[tokenizer.eod_id] == shard_set.manifest["documents"]
        assert (counts * tokenizer.token_bytes).sum() == shard_set.bytes
        rows = shard_set.read(np.arange(len(shard_set)))
        seen = np.bincount(np.append(rows[:, :-1].ravel(), rows[-1, -1]), minlength=len(counts))
        assert (seen <= counts).all() and counts.sum() - seen.sum() < shard_set.sequence_length
