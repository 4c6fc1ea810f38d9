"""The stream of pairs: the same pixels and tokens for any number of ranks, threads and restarts; damage and changes."""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import CurriculumSegment, DataConfig, ShardSource
from data_pipeline.errors import BadConfig, DamagedShard, DataMismatch
from data_pipeline.pairs.reader import PairSet
from data_pipeline.pairs.stream import PairBatch, PairStream
from data_pipeline.pairs.validation import PairValidationSet
from data_pipeline.prefetch import Prefetcher
from tests.data_pipeline.pair_sets import caption_of, mix, write_merges, write_pairs
from tests.data_pipeline.test_pair_shards import flip_in_picture

SIZES = {"web": 38, "books": 21, "art": 13}
BROKEN = {"web": [3, 30], "art": [0]}
SHAPE = {"image_size": 24, "context_length": 14}
COLOURFUL = {"augment": "random_resized_crop", "flip": 0.5, "brightness": 0.4, "saturation": 0.4, "grayscale": 0.2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three corpora, some of whose pictures are cut off."""
    folder = tmp_path_factory.mktemp("pairs")
    sha256 = write_merges(folder / "merges.txt")
    for name, samples in SIZES.items():
        write_pairs(folder / name, samples, sha256=sha256, broken=BROKEN.get(name, ()))
    return folder


def three(folder: Path, **images: Any) -> DataConfig:
    return mix(folder, {"web": 0.6, "books": 0.3, "art": 0.1}, **{**COLOURFUL, **images})


def joined(parts: list[PairBatch]) -> dict[str, np.ndarray]:
    names = ("images", "tokens", "corpus")
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}


def equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first)


def test_a_batch_is_images_and_tokens(folder: Path) -> None:
    stream = PairStream(three(folder), 1, **SHAPE)
    batch = stream.batch(0, 12)
    assert batch.images.shape == (12, 3, 24, 24) and batch.images.dtype == np.uint8
    assert batch.tokens.shape == (12, 14) and batch.tokens.dtype == np.int64
    assert set(batch.arrays()) == {"images", "tokens"}
    assert stream.sequence_length == 14
    assert stream.vocab_size == stream.caption_tokenizer().vocab_size == 512 + 5 + 2
    assert stream.tokenizer_path == folder / "merges.txt"
    corpus, position = stream.locate(np.arange(12))
    names = np.array(stream.corpora)[corpus]
    captions = [caption_of(str(name), p) for name, p in zip(names, position.tolist(), strict=True)]
    expected = stream.caption_tokenizer().encode(captions, 14)
    sound = [p not in BROKEN.get(str(name), ()) for name, p in zip(names, position.tolist(), strict=True)]
    assert np.array_equal(batch.tokens[sound], expected[sound]) and sum(sound) > 8
    stream.close()


@settings(max_examples=12)
@given(
    chance=st.randoms(use_true_random=False), augment=st.sampled_from(["none", "square_crop", "random_resized_crop"])
)
def test_any_schedule_shows_the_same_pairs_and_crops(folder: Path, chance: random.Random, augment: str) -> None:
    config, total = three(folder, augment=augment), 90
    config.curriculum = [CurriculumSegment("400 tokens", {"books": 1.0, "art": 2.0})]
    seed = chance.randint(0, 9)
    plain = PairStream(dataclasses.replace(config, images=dataclasses.replace(config.images, workers=0)), seed, **SHAPE)
    expected = joined([plain.batch(0, total)])

    found: list[PairBatch] = []
    consumed, state = 0, plain.state()
    while consumed < total:  # each time other ranks, threads and batches, and a resume
        ranks, workers, size = chance.randint(1, 5), chance.randint(0, 4), chance.randint(1, 33)
        count = min(chance.randint(1, 3) * size, total - consumed)
        requests = [(s, min(size, consumed + count - s)) for s in range(consumed, consumed + count, size)]
        images = dataclasses.replace(config.images, workers=workers)
        of_ranks = [
            PairStream.continuing(
                dataclasses.replace(config, images=images), seed, json.loads(json.dumps(state)), **SHAPE
            )
            for _ in range(ranks)
        ]
        readers = [Prefetcher(stream, requests, rank, ranks) for rank, stream in enumerate(of_ranks)]
        for slices in zip(*readers, strict=True):
            found.extend(slices)
        for stream, reader in zip(of_ranks, readers, strict=True):
            reader.close()
            stream.close()
        consumed += count
        state = of_ranks[0].state(consumed)
    assert equal(joined(found), expected)
    assert state == plain.state(total)


def test_another_epoch_shows_other_crops_of_the_same_pictures(folder: Path) -> None:
    config = mix(folder, {"books": 1}, augment="random_resized_crop", crop_scale=[0.3, 0.7])
    stream = PairStream(config, 1, **SHAPE)
    first, second = stream.batch(0, 21), stream.batch(21, 21)
    at = [int(np.flatnonzero((second.tokens == row).all(axis=1))[0]) for row in first.tokens]
    assert sorted(at) == list(range(21))
    assert not any(np.array_equal(first.images[i], second.images[j]) for i, j in enumerate(at))
    still = PairStream(mix(folder, {"books": 1}, augment="none"), 1, **SHAPE)
    first, second = still.batch(0, 21), still.batch(21, 21)
    assert all(np.array_equal(first.images[i], second.images[j]) for i, j in enumerate(at))


def test_the_mix_has_its_weights(folder: Path) -> None:
    stream = PairStream(three(folder), 1, **SHAPE)
    counts = np.bincount(stream.batch(0, 100).corpus)
    assert (abs(counts - [60, 30, 10]) <= 2).all()
    assert list(stream.epochs(100)) == ["web", "books", "art"]


def test_an_undecodable_picture_is_replaced_with_its_caption_counted_and_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = mix(folder, {"web": 1}, augment="none")
    stream = PairStream(config, 1, **SHAPE)
    with caplog.at_level(logging.WARNING):
        batch = stream.batch(0, 38)
    assert stream.substituted_pictures == 2
    assert "the picture of pair 000000003 of web is replaced: no readable JPEG: truncated" in caplog.text
    _, position = stream.locate(np.arange(38))
    sound = PairValidationSet([ShardSource(str(folder / "web"))], **SHAPE)
    shown = {
        tuple(row): i for i, row in enumerate(sound.caption_tokenizer().encode(sound.captions(0, 38), 14).tolist())
    }
    for i, (row, own) in enumerate(zip(batch.tokens.tolist(), position.tolist(), strict=True)):
        which = shown[tuple(row)]
        assert (which == own) == (own not in BROKEN["web"])
        assert np.array_equal(batch.images[i], sound.batch(which, 1).images[0])  # picture and caption belong together
    other = PairStream(config, 1, **SHAPE)
    assert equal(joined([other.batch(0, 38, i, 3) for i in range(3)]), joined([batch]))


def test_a_corpus_without_a_picture_that_decodes_is_an_error(folder: Path, tmp_path: Path) -> None:
    sha256 = write_merges(tmp_path / "merges.txt")
    write_pairs(tmp_path / "bad", 40, sha256=sha256, broken=range(40))
    write_pairs(tmp_path / "few", 2, sha256=sha256, broken=range(2))
    for name, tried in (("bad", 16), ("few", 1)):
        with pytest.raises(DamagedShard, match=rf"of {name} and those of the {tried} pairs that could stand in"):
            PairStream(mix(tmp_path, {name: 1}), 1, **SHAPE).batch(0, 4)


def test_damaged_members_stop_or_are_replaced_the_same_everywhere(tmp_path: Path) -> None:
    write_pairs(tmp_path / "web", 38, sha256=write_merges(tmp_path / "merges.txt"))
    flip_in_picture(tmp_path / "web", 22)
    (tmp_path / "web" / "00002.tar").unlink()  # pairs 32 to 37, members 8 and 9
    stopping = mix(tmp_path, {"web": 1})
    with pytest.raises(DamagedShard):
        PairStream(stopping, 1, **SHAPE).batch(0, 38)
    config = dataclasses.replace(stopping, on_damaged="substitute")
    whole = PairStream(config, 1, **SHAPE)
    batch = joined([whole.batch(0, 76)])
    ranks = [PairStream(config, 1, **SHAPE) for _ in range(3)]
    assert equal(joined([rank.batch(0, 76, index, 3) for index, rank in enumerate(ranks)]), batch)
    gone = [22, *range(32, 38)]
    found = [entry for rank in ranks for entry in rank.found_damage()]
    assert {entry["member"] for entry in found} == set(gone)
    for rank in ranks:
        assert [entry["member"] for entry in rank.substitute(found)] == gone
    resumed = PairStream.continuing(stopping, 1, json.loads(json.dumps(ranks[2].state(38))), **SHAPE)
    assert equal(joined([resumed.batch(0, 76)]), batch)  # the damaged pairs are not touched
    _, position = resumed.locate(np.arange(76))
    assert not set(gone) & set(position.tolist())


def test_other_augmentation_is_named_and_goes_on_only_where_it_is_allowed(folder: Path) -> None:
    config = three(folder)
    state = PairStream(config, 1, **SHAPE).state(50)
    other = three(folder, flip=0.25)
    with pytest.raises(DataMismatch, match=r"data\.images\.flip was 0\.5 and is 0\.25; .*--data\.allow-change"):
        PairStream.continuing(other, 1, state, **SHAPE)
    allowed = PairStream.continuing(dataclasses.replace(other, allow_change=True), 1, state, **SHAPE)
    assert allowed.changed == "data.images.flip was 0.5 and is 0.25"
    old, new = PairStream(config, 1, **SHAPE), PairStream(other, 1, **SHAPE)
    assert equal(joined([allowed.batch(40, 20)]), joined([old.batch(40, 10), new.batch(50, 10)]))
    again = PairStream.continuing(other, 1, json.loads(json.dumps(allowed.state(60))), **SHAPE)
    assert equal(joined([again.batch(40, 20)]), joined([allowed.batch(40, 20)]))
    # The threads that decode are no part of the data.
    assert PairStream.continuing(three(folder, workers=3), 1, state, **SHAPE).changed is None


def test_another_picture_size_or_context_is_another_stream(folder: Path) -> None:
    state = PairStream(three(folder), 1, **SHAPE).state(5)
    config = dataclasses.replace(three(folder), allow_change=True)
    with pytest.raises(DataMismatch, match="image_size was 24 and is 32"):
        PairStream.continuing(config, 1, state, image_size=32, context_length=14)
    with pytest.raises(DataMismatch, match="sequence_length was 14 and is 12"):
        PairStream.continuing(config, 1, state, image_size=24, context_length=12)
    with pytest.raises(DataMismatch, match="seed was 1 and is 2"):
        PairStream.continuing(config, 2, state, **SHAPE)


def test_a_skip_leaves_pairs_out_and_their_crops_too(folder: Path) -> None:
    stream = PairStream(three(folder), 1, **SHAPE)
    expected = joined([stream.batch(0, 10), stream.batch(17, 10)])
    stream.skip(10, 7)
    assert equal(joined([stream.batch(0, 20)]), expected)


def test_a_mix_behind_urls_is_the_same(folder: Path, tmp_path: Path) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    files.put(str(folder / "merges.txt"), "/stream-of-pairs/merges.txt")
    for name in SIZES:
        files.put(str(folder / name), f"/stream-of-pairs/{name}", recursive=True)
    config = dataclasses.replace(three(folder), shuffle="windowed", shuffle_window=3)
    remote = dataclasses.replace(config, shuffle="auto")
    remote.mix = [
        ShardSource(f"memory://stream-of-pairs/{name}", s.weight) for name, s in zip(SIZES, config.mix, strict=True)
    ]
    remote.cache = dataclasses.replace(config.cache, directory=str(tmp_path / "cache"))
    local, there = PairStream(config, 1, **SHAPE), PairStream(remote, 1, **SHAPE)
    assert there.remote and there.fingerprint() == local.fingerprint()
    with Prefetcher(there, [(0, 20), (20, 20)]) as reader:
        assert equal(joined(list(reader)), joined([local.batch(0, 40)]))


def test_held_out_pairs_come_in_order_and_unchanged(folder: Path) -> None:
    sources = [ShardSource(str(folder / "books")), ShardSource(str(folder / "web"))]
    held_out = PairValidationSet(sources, **SHAPE)
    assert len(held_out) == 59 and held_out.names == ["books", "web"]
    assert held_out.captions(19, 4) == [caption_of("books", n) for n in (19, 20)] + [
        caption_of("web", n) for n in (0, 1)
    ]
    whole = held_out.batch(0, 24)
    assert equal(joined([held_out.batch(0, 24, i, 5) for i in range(5)]), joined([whole]))
    assert whole.corpus.tolist() == [0] * 21 + [1] * 3
    with pytest.raises(DamagedShard, match="the picture of pair 000000003 of web cannot be decoded"):
        held_out.batch(21, 10)
    with pytest.raises(IndexError, match="59 samples"):
        held_out.batch(50, 10)
    held_out.close()


def test_an_empty_list_is_refused(folder: Path) -> None:
    with pytest.raises(BadConfig, match=r"data\.mix is empty"):
        PairStream(DataConfig(), 1, **SHAPE)
    with pytest.raises(BadConfig, match=r"data\.validation is empty"):
        PairValidationSet([], **SHAPE)


def _batch_of(stream: PairStream, answer: Any) -> None:
    answer.put(stream.batch(8, 16).tokens.tolist())


def test_a_stream_that_has_decoded_goes_on_in_a_forked_process(folder: Path) -> None:
    """The standby that ranks are forked from may have read; threads do not survive a fork."""
    stream = PairStream(three(folder, workers=3), 1, **SHAPE)
    expected = stream.batch(8, 16).tokens.tolist()
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    child = context.Process(target=_batch_of, args=(stream, answer))
    child.start()
    child.join(60)
    assert child.exitcode == 0 and answer.get() == expected
    assert PairSet(folder / "web").read(0)[1] == caption_of("web", 0)


READER = """
import itertools, sys
from data_pipeline.config import DataConfig, ImageConfig, ShardSource
from data_pipeline.pairs.stream import PairStream
data = DataConfig(mix=[ShardSource(sys.argv[1])], images=ImageConfig(workers=3))
stream = PairStream(data, 1, image_size=64, context_length=8)
for batch in itertools.count():
    stream.batch(64 * batch, 64)
    print(batch, flush=True)
"""


def test_a_reader_that_is_killed_leaves_no_process_and_no_shared_memory(folder: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    with subprocess.Popen([sys.executable, "-c", READER, str(folder / "web")], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        for _ in range(3):
            assert reader.stdout.readline()
        tasks = Path(f"/proc/{reader.pid}/task")
        names = [(task / "comm").read_text().strip() for task in tasks.iterdir()]
        children = "".join((task / "children").read_text() for task in tasks.iterdir())
        mapped = Path(f"/proc/{reader.pid}/maps").read_text()
        reader.kill()
        assert reader.wait(30) == -9
    assert len(names) > 3 and not children.split() and "/dev/shm" not in mapped
    assert not {entry for entry in set(os.listdir("/dev/shm")) - before if str(reader.pid) in entry}
