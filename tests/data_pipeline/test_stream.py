"""The stream is a pure function: exact proportions, true permutations, equal batches for every way of asking."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import DataConfig, ShardSource
from data_pipeline.errors import BadConfig, BadShards, BadTokenizer, DataMismatch
from data_pipeline.mixing import Curriculum, Mix
from data_pipeline.permutation import permute
from data_pipeline.shard_reader import ShardSet
from data_pipeline.shuffling import Shuffle
from data_pipeline.stream import Prefetcher, Stream, ValidationSet
from tests.data_pipeline.conftest import mix_of

weights_lists = st.lists(st.floats(0.001, 1000), min_size=1, max_size=12)


@given(n=st.integers(1, 3000), key=st.integers(0, 2**63 - 1))
def test_permutation_is_one(n: int, key: int) -> None:
    image = permute(np.arange(n), np.full(n, key), n)
    assert np.array_equal(np.sort(image), np.arange(n))


def test_permutation_shuffles_and_depends_on_its_key() -> None:
    n = 5000
    one, other = (permute(np.arange(n), np.full(n, key), n) for key in (1, 2))
    assert (one == other).mean() < 0.01
    for image in (one, other):
        assert abs(np.corrcoef(np.arange(n), image)[0, 1]) < 0.05
        assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.05


@given(
    samples=st.integers(1, 600),
    rows=st.integers(1, 40),
    window=st.integers(1, 20),
    key=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 10**6),
)
def test_windowed_shuffle_shows_each_sample_once_an_epoch_window_by_window(
    samples: int, rows: int, window: int, key: int, epoch: int
) -> None:
    numbers = np.arange(epoch * samples, (epoch + 1) * samples)
    positions = Shuffle(window).positions(numbers, key, samples, rows)
    assert np.array_equal(np.sort(positions), np.arange(samples))
    members = positions // rows
    size = window * rows
    shown = [set(members[start : start + size].tolist()) for start in range(0, samples, size)]
    assert sum(map(len, shown)) == -(-samples // rows), "a member is in two windows"
    assert samples % rows == 0 or samples // rows in shown[-1], "the short last member is not in the last window"
    in_pieces = [Shuffle(window).positions(numbers[i : i + 7], key, samples, rows) for i in range(0, samples, 7)]
    assert np.array_equal(np.concatenate(in_pieces), positions)


@pytest.mark.parametrize(("window", "same", "distance"), [(None, 0.0015, 0.01), (64, 1 / 64 + 0.002, 0.03)])
def test_neighbours_are_as_unrelated_as_the_shuffle_promises(window: int | None, same: float, distance: float) -> None:
    """A perfect shuffle of 1,000 members has 0.1 % neighbours of one member, and a mean distance of a third."""
    rows, samples = 100, 100_000
    epochs = [Shuffle(window).positions(np.arange(e * samples, (e + 1) * samples), 5, samples, rows) for e in (0, 1)]
    for positions in epochs:
        assert (np.diff(positions // rows) == 0).mean() < same
        assert abs(np.abs(np.diff(positions)).mean() / (samples / 3) - 1) < distance
        assert abs(np.corrcoef(positions[:-1], positions[1:])[0, 1]) < distance
        assert len(set((positions[:512] // rows).tolist())) > (60 if window else 300)
    assert (epochs[0] == epochs[1]).mean() < 0.001


@pytest.mark.parametrize("window", [None, 64])
def test_a_hundred_billion_samples_are_located_without_memory_in_microseconds(window: int | None) -> None:
    samples = 100_000_000_000
    curriculum = Curriculum([(0, [0.6, 0.3, 0.1]), (10**10, [0.1, 0.2, 0.7]), (9 * 10**10, [0, 0, 1])], seed=1)
    shuffle = Shuffle(window)

    def look_up(start: int) -> None:
        corpus, number = curriculum.assign(np.arange(start, start + 512))
        shuffle.positions(number[corpus == 2], 7, samples, 255)

    look_up(0)
    tracemalloc.start()
    began = time.perf_counter()
    for start in range(0, samples, samples // 50):
        look_up(start)
    seconds = (time.perf_counter() - began) / 51 / 512
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000, f"{peak} bytes"
    assert seconds < 50e-6, f"{seconds * 1e6:.1f} µs a sample"  # 1-2 on an idle core, without tracemalloc


def test_a_permutation_of_a_hundred_billion_needs_no_array() -> None:
    n = 100_000_000_000
    values = np.random.default_rng(0).integers(0, n, 1000)
    image = permute(values, np.zeros(1000, dtype=np.int64), n)
    assert len(set(image.tolist())) == len(set(values.tolist())) and image.min() >= 0 and image.max() < n


@given(weights=weights_lists, seed=st.integers(0, 2**32), start=st.integers(0, 10**12), length=st.integers(1, 2000))
def test_any_window_of_the_mix_has_the_weights_proportions(
    weights: list[float], seed: int, start: int, length: int
) -> None:
    mix = Mix(weights, seed)
    corpus, number = mix.assign(np.arange(start, start + length))
    before, after = mix.counts(start), mix.counts(start + length)
    for c in range(len(weights)):
        # each corpus's numbers go on without a gap, in order, from the count before the window
        assert number[corpus == c].tolist() == list(range(before[c], after[c]))
        # weights are rounded to 2^-31 at each level, which over a window of 2,000 is nothing
        assert abs((after[c] - before[c]) - mix.weights[c] * length) < c + 1.001
    assert sum(after) == start + length


@given(weights=weights_lists, seed=st.integers(0, 2**32), samples=st.integers(10**6, 10**11))
def test_proportions_are_exact_over_long_prefixes(weights: list[float], seed: int, samples: int) -> None:
    mix = Mix(weights, seed)
    for count, weight in zip(mix.counts(samples), mix.weights, strict=True):
        assert abs(count - weight * samples) < len(weights) * (1 + samples * 2.0**-31)


def test_gpt3_epochs_at_300_billion_tokens() -> None:
    """Brown et al. 2020, table 2.2: tokens and weights; the printed weights sum to 101 %, so they are normalised."""
    tokens = {"Common Crawl": 410, "WebText2": 19, "Books1": 12, "Books2": 55, "Wikipedia": 3}
    weights = [60.0, 22.0, 8.0, 8.0, 3.0]
    samples = 300_000_000_000 // 2048
    counts = Mix(weights, seed=1).counts(samples)
    epochs = [count * 2048 / (billions * 1e9) for count, billions in zip(counts, tokens.values(), strict=True)]
    by_hand = [float(Fraction(300) * Fraction(int(w), 101) / b) for w, b in zip(weights, tokens.values(), strict=True)]
    assert epochs == pytest.approx(by_hand, rel=1e-5)
    assert epochs == pytest.approx([0.435, 3.44, 1.98, 0.43, 2.97], abs=0.006)


@settings(max_examples=60)
@given(
    start=st.integers(0, 10**9),
    size=st.integers(1, 48),
    count=st.integers(1, 48),
    seed=st.integers(0, 100),
    cuts=st.lists(st.integers(0, 48), max_size=3),
)
def test_batches_are_equal_for_any_slices_and_restarts(
    shards: Path, start: int, size: int, count: int, seed: int, cuts: list[int]
) -> None:
    whole = Stream(mix_of(shards), seed).batch(start, size)
    sliced = [Stream(mix_of(shards), seed).batch(start, size, index, count) for index in range(count)]
    assert np.array_equal(np.concatenate([b.tokens for b in sliced]), whole.tokens)
    assert np.array_equal(np.concatenate([b.corpus for b in sliced]), whole.corpus)
    if size % count == 0:
        assert {len(b.tokens) for b in sliced} == {size // count}
    bounds = sorted({0, size, *(cut for cut in cuts if cut < size)})
    pieces = [Stream(mix_of(shards), seed).batch(start + a, b - a).tokens for a, b in itertools.pairwise(bounds)]
    assert np.array_equal(np.concatenate(pieces), whole.tokens)


def test_every_epoch_shows_each_sample_once_in_a_new_order(shards: Path) -> None:
    stream = Stream(DataConfig(mix=[ShardSource(str(shards / "tools"))]), seed=3)
    n = ShardSet(shards / "tools").samples
    epochs = [stream.locate(np.arange(e * n, (e + 1) * n))[1] for e in range(3)]
    for positions in epochs:
        assert np.array_equal(np.sort(positions), np.arange(n))
    assert (epochs[0] == epochs[1]).mean() < 0.05 and (epochs[1] == epochs[2]).mean() < 0.05
    assert stream.epochs(2 * n + n // 2) == {"tools": pytest.approx(2.5, abs=1 / n)}


def test_seeds_give_other_orders_and_tokens_are_those_of_the_shards(shards: Path) -> None:
    config = mix_of(shards)
    one, other = Stream(config, 1), Stream(config, 2)
    assert not np.array_equal(one.batch(0, 64).tokens, other.batch(0, 64).tokens)
    batch = one.batch(1000, 64)
    corpus, position = one.locate(np.arange(1000, 1064))
    assert np.array_equal(batch.corpus, corpus) and {0, 1} == set(corpus.tolist())
    for row, c, p in zip(batch.tokens, corpus, position, strict=True):
        assert np.array_equal(row, ShardSet(shards / one.corpora[c]).read(np.array([p]))[0])
    assert batch.tokens.dtype == np.int64 and batch.tokens.shape == (64, 33)


def test_skips_shift_the_samples_that_follow(shards: Path) -> None:
    plain, skipping = Stream(mix_of(shards), 5), Stream(mix_of(shards), 5)
    skipping.skip(at=100, count=40)
    skipping.skip(at=200, count=7)
    assert np.array_equal(skipping.batch(60, 40).tokens, plain.batch(60, 40).tokens)
    assert np.array_equal(skipping.batch(100, 100).tokens, plain.batch(140, 100).tokens)
    assert np.array_equal(skipping.batch(200, 50).tokens, plain.batch(247, 50).tokens)
    assert np.array_equal(
        skipping.batch(90, 20).tokens, np.concatenate([plain.batch(90, 10).tokens, plain.batch(140, 10).tokens])
    )
    seen = np.concatenate([skipping.batch(start, 50).corpus for start in range(0, 300, 50)])
    sizes = [ShardSet(shards / name).samples for name in skipping.corpora]
    assert list(skipping.epochs(300).values()) == [(seen == c).sum() / n for c, n in enumerate(sizes)]


def test_skipped_samples_do_not_count_as_epochs(shards: Path) -> None:
    """Skips each sample of the first corpus, so that only the second is ever seen."""
    stream = Stream(mix_of(shards), 5)
    for consumed in range(60):
        while stream.locate(np.array([consumed]))[0][0] == 0:
            stream.skip(at=consumed, count=1)
    assert set(stream.batch(0, 60).corpus.tolist()) == {1}
    assert stream.epochs(60) == {"network": 0.0, "tools": 60 / ShardSet(shards / "tools").samples}


def test_state_survives_json_and_a_resume_continues(shards: Path) -> None:
    stream = Stream(mix_of(shards), 7)
    stream.skip(at=32, count=16)
    state = json.loads(json.dumps(stream.state(48)))
    assert state["samples"] == 48
    resumed = Stream(mix_of(shards), 7, state["exceptions"])
    resumed.check_state(state)
    assert np.array_equal(resumed.batch(48, 16).tokens, stream.batch(48, 16).tokens)
    with pytest.raises(DataMismatch, match="exceptions"):
        Stream(mix_of(shards), 7).check_state(state)


def test_a_resume_with_other_data_names_the_difference(shards: Path, tmp_path: Path) -> None:
    state = Stream(mix_of(shards), 7).state(10)
    with pytest.raises(DataMismatch, match="seed was 7 and is 8"):
        Stream(mix_of(shards), 8).check_state(state)
    reweighted = mix_of(shards)
    reweighted.mix[0].weight = 0.5
    with pytest.raises(DataMismatch, match=r"weight of network was 0\.693069 and is 0\.617284"):
        Stream(reweighted, 7).check_state(state)
    with pytest.raises(DataMismatch, match="the mix was network, tools and is network"):
        Stream(DataConfig(mix=mix_of(shards).mix[:1]), 7).check_state(state)
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    Stream(mix_of(copy), 7).check_state(state)  # the same data elsewhere are the same data
    manifest = copy / "tools" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"documents"', '"documents" '))
    with pytest.raises(DataMismatch, match="the shards of tools are others"):
        Stream(mix_of(copy), 7).check_state(state)
    with pytest.raises(DataMismatch, match="format 99"):
        Stream(mix_of(shards), 7).check_state({**state, "format_version": 99})


def test_shard_sets_that_do_not_fit_together_are_refused(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    manifest = copy / "tools" / "manifest.json"
    content = json.loads(manifest.read_text())
    for key, value, message in [("sequence_length", 64, "sequence_length 32"), ("tokenizer_sha256", "0", "tokenizers")]:
        manifest.write_text(json.dumps({**content, key: value}))
        with pytest.raises(BadShards, match=message):
            Stream(mix_of(copy), 1)
    manifest.write_text(json.dumps(content))
    for changes, message in [
        ([ShardSource(str(copy / "tools"))] * 2, 'two shard sets are named "tools"'),
        ([ShardSource(str(copy / "nothing"))], "is no shard set"),
    ]:
        with pytest.raises(BadShards, match=message):
            Stream(DataConfig(mix=changes), 1)
    with pytest.raises(BadConfig, match="empty"):
        Stream(DataConfig(), 1)
    with pytest.raises(BadConfig, match="positive weights"):
        Stream(DataConfig(mix=[ShardSource(str(copy / "tools"), 0.0)]), 1)
    assert Stream(mix_of(copy), 1).tokenizer().vocab_size == 600
    model = copy / "tokenizer.model"
    model.write_bytes(model.read_bytes() + b"\x82\x01\x00")  # an unknown field: the same pieces, another file
    with pytest.raises(BadTokenizer, match="is not the tokenizer that network was made with"):
        Stream(mix_of(copy), 1).tokenizer()


def test_validation_reads_its_sets_in_order(shards: Path) -> None:
    validation = ValidationSet(mix_of(shards).validation)
    first, second = (ShardSet(shards / name) for name in validation.names)
    assert len(validation) == len(first) + len(second) and validation.names == [
        "network-validation",
        "tools-validation",
    ]
    batch = validation.batch(0, len(validation))
    expected = np.concatenate([s.read(np.arange(len(s))) for s in (first, second)])
    assert np.array_equal(batch.tokens, expected)
    assert batch.corpus.tolist() == [0] * len(first) + [1] * len(second)
    halves = [validation.batch(3, 10, index, 2).tokens for index in range(2)]
    assert np.array_equal(np.concatenate(halves), expected[3:13])
    with pytest.raises(IndexError):
        validation.batch(len(validation) - 1, 2)


def test_prefetcher_gives_the_batches_in_order_and_ends_its_thread(shards: Path) -> None:
    stream = Stream(mix_of(shards), 1)
    requests = [(step * 8, 8) for step in range(20)]
    with Prefetcher(stream, requests, 1, 2, depth=3) as prefetcher:
        batches = list(prefetcher)
    assert len(batches) == 20
    for (start, size), batch in zip(requests, batches, strict=True):
        assert np.array_equal(batch.tokens, stream.batch(start, size, 1, 2).tokens)
    assert all(thread.name != "prefetch" for thread in threading.enumerate())


def test_prefetcher_is_bounded_and_closes_while_it_is_ahead(shards: Path) -> None:
    asked = 0
    ahead = threading.Event()

    def requests() -> object:
        nonlocal asked
        for step in itertools.count():
            asked += 1
            if asked == 4:
                ahead.set()
            yield step * 8, 8

    prefetcher = Prefetcher(Stream(mix_of(shards), 1), requests(), depth=2)  # type: ignore[arg-type]
    next(prefetcher)
    assert ahead.wait(60)  # one consumed, two ready, one in hand
    assert asked == 4
    prefetcher.close()
    assert asked <= 5 + 2  # close drains, so that the thread can see that it must end
    assert all(thread.name != "prefetch" for thread in threading.enumerate())
    assert list(prefetcher) == []


def test_an_error_while_reading_ahead_reaches_the_consumer(shards: Path, tmp_path: Path) -> None:
    def requests() -> object:
        yield 0, 8
        raise OSError("the disk is on fire")

    prefetcher = Prefetcher(Stream(mix_of(shards), 1), requests(), depth=4)  # type: ignore[arg-type]
    assert len(next(prefetcher).tokens) == 8
    with pytest.raises(OSError, match="on fire"):
        next(prefetcher)
    prefetcher.close()
