"""Shard sets of pairs: what is written is read, by us and by webdataset; damage is told by name."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset

from data_pipeline.config import CacheConfig, DataConfig, ShardSource
from data_pipeline.errors import BadCorpus, BadShards, BadTokenizer, DamagedShard
from data_pipeline.pairs.reader import PairSet
from data_pipeline.pairs.shards import PairWriter
from data_pipeline.pairs.stream import PairStream
from data_pipeline.shard_reader import ShardSet
from data_pipeline.stream import Stream
from tests.data_pipeline.pair_sets import caption_of, mix, picture_of, write_merges, write_pairs
from tests.data_pipeline.shard_sets import mix as text_mix
from tests.data_pipeline.shard_sets import write_set

SAMPLES = 38


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten members of four pairs in three tars."""
    write_pairs(tmp_path / "web", SAMPLES, sha256=write_merges(tmp_path / "merges.txt"))
    return tmp_path


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def flip_in_picture(directory: Path, number: int) -> str:
    """Changes a bit of a pair's picture; the name of its tar."""
    tar, start, _, _ = np.load(directory / "index.npy")[number // 4].tolist()
    offset = int(np.load(directory / "pairs.npy")[number, 0])
    name = f"{tar:05d}.tar"
    flip(directory / name, start + offset + 10)
    return name


def test_pairs_are_read_as_they_were_written(folder: Path) -> None:
    pairs = PairSet(folder / "web")
    assert len(pairs) == SAMPLES and pairs.members == 10 and not pairs.remote
    for number in range(SAMPLES):
        assert pairs.read(number) == (picture_of(number)[0], caption_of("web", number))
    told: list[int] = []
    pairs.verify(told.append)
    assert told == list(range(1, 11))
    with pytest.raises(IndexError):
        pairs.read(SAMPLES)


def test_the_stock_webdataset_reads_them(folder: Path) -> None:
    tars = sorted(str(path) for path in (folder / "web").glob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert [sample["txt"].decode() for sample in samples] == [caption_of("web", n) for n in range(SAMPLES)]
    for number, sample in enumerate(samples):
        picture, extension = picture_of(number)
        assert sample[extension] == picture and json.loads(sample["json"]) == {"key": number}


def test_equal_pairs_give_equal_bytes(folder: Path) -> None:
    write_pairs(folder / "again" / "web", SAMPLES, sha256=PairSet(folder / "web").tokenizer_sha256)
    for path in (folder / "web").iterdir():
        assert path.read_bytes() == (folder / "again" / "web" / path.name).read_bytes()


def test_from_a_url_they_are_read_member_by_member_through_the_cache(folder: Path, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.put(str(folder / "web"), "/pairs-of-a-test/web", recursive=True)
    files.put(str(folder / "merges.txt"), "/pairs-of-a-test/merges.txt")
    pairs = PairSet("memory://pairs-of-a-test/web", CacheConfig(str(tmp_path / "cache")))
    pairs.fetch_ahead(np.arange(8))
    assert [pairs.read(n) for n in (0, 37, 5)] == [(picture_of(n)[0], caption_of("web", n)) for n in (0, 37, 5)]
    assert pairs.caption_tokenizer().sha256 == pairs.tokenizer_sha256
    for entry in (tmp_path / "cache" / "entries").glob("*/*"):  # the copies are damaged, not the source
        for offset in range(0, entry.stat().st_size, 97):
            flip(entry, offset)
    again = PairSet("memory://pairs-of-a-test/web", CacheConfig(str(tmp_path / "cache")))
    assert [again.read(n) for n in range(SAMPLES)] == [(picture_of(n)[0], caption_of("web", n)) for n in range(SAMPLES)]
    again.verify()


def test_a_damaged_picture_is_told_with_its_tar(folder: Path) -> None:
    tar = flip_in_picture(folder / "web", 22)
    pairs = PairSet(folder / "web")
    with pytest.raises(DamagedShard, match=rf"{tar} is damaged: pair 000000022 fails its CRC; prepare"):
        pairs.read(22)
    assert pairs.read(23) == (picture_of(23)[0], caption_of("web", 23))  # of the same member
    with pytest.raises(DamagedShard, match="of pairs 000000020 to 000000023 fails its CRC"):
        pairs.verify()


def test_a_tar_that_lost_a_caption_is_told(folder: Path) -> None:
    path = folder / "web" / "00001.tar"
    with tarfile.open(path) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for info, content in members:
            if info.name != "000000018.txt":
                tar.addfile(info, io.BytesIO(content))
    with pytest.raises(DamagedShard, match=r"00001\.tar has \d+ bytes instead of \d+"):
        PairSet(folder / "web").read(18)
    size = PairSet(folder / "web").manifest["tars"][1]["size"]
    path.write_bytes((path.read_bytes() + bytes(size))[:size])  # of the right size, and yet another
    PairSet(folder / "web").read(17)
    for number in (18, 19, 31):
        with pytest.raises(DamagedShard, match=rf"00001\.tar is damaged: pair {number:09d} fails its CRC"):
            PairSet(folder / "web").read(number)


@pytest.mark.parametrize("name", ["index.npy", "pairs.npy"])
def test_a_damaged_index_is_told(folder: Path, name: str) -> None:
    flip(folder / "web" / name, -5)
    with pytest.raises(DamagedShard, match=rf"{name} is damaged"):
        PairSet(folder / "web").read(0)


def test_text_and_pairs_are_not_taken_for_each_other(folder: Path) -> None:
    write_set(folder / "text", 20)
    with pytest.raises(BadShards, match=r"web is a shard set of image-text, but text is wanted here"):
        ShardSet(folder / "web")
    with pytest.raises(BadShards, match=r"web is a shard set of image-text, but text is wanted here: .*family"):
        Stream(text_mix(folder, web=1), 1)
    with pytest.raises(BadShards, match=r"text is a shard set of text, but image-text is wanted here"):
        PairStream(mix(folder, {"text": 1}), 1, image_size=16, context_length=8)
    data = DataConfig(mix=[ShardSource(str(folder / "web"))], validation=[ShardSource(str(folder / "text"))])
    with pytest.raises(BadShards, match="text is a shard set of text"):
        PairStream(data, 1, image_size=16, context_length=8)


def test_the_tokenizer_is_that_of_the_shards(folder: Path) -> None:
    pairs = PairSet(folder / "web")
    (folder / "tokenizer.model").write_bytes(b"another one, of text shards")
    with pytest.raises(BadTokenizer, match="no SentencePiece model"):
        pairs.caption_tokenizer()
    (folder / "tokenizer.model").unlink()
    assert pairs.tokenizer_path == folder / "merges.txt"
    write_merges(folder / "merges.txt", ["x y"])
    with pytest.raises(BadTokenizer, match=r"merges\.txt is not the tokenizer that web was made with"):
        PairStream(mix(folder, {"web": 1}), 1, image_size=16, context_length=8)
    (folder / "merges.txt").unlink()
    with pytest.raises(BadTokenizer, match=r"lies no tokenizer\.model or merges\.txt"):
        pairs.caption_tokenizer()


def test_shard_sets_of_different_tokenizers_do_not_mix(folder: Path) -> None:
    write_pairs(folder / "other", 5, sha256="0" * 64)
    with pytest.raises(BadShards, match="different tokenizers"):
        PairStream(mix(folder, {"web": 1, "other": 1}), 1, image_size=16, context_length=8)


@pytest.mark.parametrize(
    ("picture", "extension", "caption", "why"),
    [
        (b"x", "gif", "a", "extension"),
        (b"", "jpg", "a", "0 bytes"),
        (b"x", "jpg", " \n", "caption is empty"),
        (b"x", "jpg", "\ud800", "lone surrogate"),
        (b"x", "jpg", "a" * 70000, "more than 65536"),
    ],
)
def test_what_no_pair_is_cannot_be_written(
    tmp_path: Path, picture: bytes, extension: str, caption: str, why: str
) -> None:
    writer = PairWriter(tmp_path, name="web", tokenizer_sha256="0")
    with pytest.raises(BadCorpus, match=rf"pair 0: .*{why}"):
        writer.add(picture, extension, caption)
    writer.abandon()
