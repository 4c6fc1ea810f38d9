"""Whatever happens to a run, on whatever ranks, the samples it consumes are one sequence: thousands of schedules."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.batching import BatchConfig, BatchSchedule, RampConfig
from data_pipeline.config import CurriculumSegment, DataConfig
from data_pipeline.prefetch import Prefetcher
from data_pipeline.shard_reader import ShardSet
from data_pipeline.stream import Stream
from tests.data_pipeline.shard_sets import LENGTH, SIZES, mix, rewritten, write_sets

TOTAL = 400  # consumed samples of a schedule


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"))


def tokens_of(samples: int) -> str:
    return f"{samples * LENGTH} tokens"


@dataclass
class Story:
    """What a run reads and what befalls it, at which consumed sample: the same for every schedule of it."""

    config: DataConfig
    seed: int
    happenings: list[tuple[int, str, Any]] = field(default_factory=list)


@dataclass
class Schedule:
    """How ranks happen to be arranged, from one restart to the next, and how the batches are cut."""

    arrangements: list[tuple[int, int, int]]
    """(samples until the next restart, ranks, samples in a rank's micro-batch)."""
    batch: int
    ramp: bool


def live(
    story: Story, schedule: Schedule, consume: Callable[[Stream, list[tuple[int, int]], int, int], None]
) -> Stream:
    """Goes through a story under a schedule; `consume` is given the batches of each attempt, (start, size)."""
    config = BatchConfig(schedule.batch, 1, RampConfig(1, 1, tokens_of(100)) if schedule.ramp else None)
    batches = BatchSchedule(config, LENGTH)
    stream = Stream(story.config, story.seed)
    data, samples = story.config, 0
    arrangements = itertools.cycle(schedule.arrangements)
    restart, (ranks, micro) = 0, (1, 1)
    happenings = [*story.happenings, (TOTAL, "end", None)]
    for at, kind, what in happenings:
        while samples < at:
            if samples >= restart:
                length, ranks, micro = next(arrangements)
                restart = samples + length
                stream = Stream.continuing(data, story.seed, json.loads(json.dumps(stream.state(samples))))
            requests = []
            while samples < min(at, restart):
                size = min(batches.size_at(samples), at - samples)
                requests.append((samples, size))
                samples += size
            consume(stream, requests, ranks, micro)
        if kind == "skip":
            stream.skip(at, what)
        elif kind == "damage":
            stream.substitute([what])
        elif kind == "change":
            data = rewritten(what, allow_change=True)
            stream = Stream.continuing(data, story.seed, json.loads(json.dumps(stream.state(samples))))
            data = rewritten(what, allow_change=False)  # given for one resume
    return stream


def located(story: Story, schedule: Schedule) -> tuple[np.ndarray, Stream]:
    """The consumed sequence, [TOTAL, 2]: corpus and position, as the ranks' slices give it when put together."""
    found: list[np.ndarray] = []

    def consume(stream: Stream, requests: list[tuple[int, int]], ranks: int, micro: int) -> None:
        numbers: list[int] = []
        for start, size in requests:
            for low, high in itertools.pairwise(start + size * rank // ranks for rank in range(ranks + 1)):
                for first in range(low, high, micro):
                    numbers.extend(range(first, min(first + micro, high)))
        # All batches of the attempt in one call: the tests with tokens ask for each rank's slice of each by itself.
        corpus, position = stream.locate(np.array(numbers))
        names = np.array([list(SIZES).index(name) for name in stream.corpora])
        found.append(np.stack([names[corpus], position], axis=1))

    stream = live(story, schedule, consume)
    return np.concatenate(found), stream


names = st.sampled_from(list(SIZES))


@st.composite
def configs(draw: st.DrawFn, folder: Path, must: Sequence[str] = ()) -> DataConfig:
    chosen = [*must, *(n for n in draw(st.lists(names, min_size=1, max_size=3, unique=True)) if n not in must)]
    config = mix(folder, **{name: draw(st.floats(0.05, 5)) for name in chosen})
    starts = sorted(draw(st.sets(st.integers(0, TOTAL), max_size=3)))
    for start in starts:
        weights = {name: draw(st.sampled_from([0.0, 0.3, 1.0, 2.5])) for name in chosen}
        weights[draw(st.sampled_from(chosen))] = 1.0
        config.curriculum.append(CurriculumSegment(tokens_of(start), weights))
    config.shuffle = draw(st.sampled_from(["full", "windowed"]))
    config.shuffle_window = draw(st.integers(1, 6))
    config.on_damaged = "substitute"
    return config


@st.composite
def stories(draw: st.DrawFn, folder: Path) -> Story:
    config = draw(configs(folder))
    story = Story(config, draw(st.integers(0, 50)))
    known = {Path(source.shards).name for source in config.mix}
    for at in sorted(draw(st.sets(st.integers(1, TOTAL - 1), max_size=4))):
        kind = draw(st.sampled_from(["skip", "damage", "change"]))
        what: Any = draw(st.integers(0, 60))
        if kind == "damage":
            corpus = draw(st.sampled_from(sorted(known)))
            members = -(-SIZES[corpus] // (4 + list(SIZES).index(corpus)))
            if members < 3:
                continue
            what = {"corpus": corpus, "member": draw(st.integers(0, members - 1)), "reason": ""}
        elif kind == "change":
            what = draw(configs(folder, sorted(known)))
            known = {Path(source.shards).name for source in what.mix}
        story.happenings.append((at, kind, what))
    return story


def some_schedule(chance: random.Random) -> Schedule:
    arrangements = [
        (chance.randint(30, TOTAL), chance.randint(1, 64), chance.randint(1, 8)) for _ in range(chance.randint(1, 5))
    ]
    return Schedule(arrangements, chance.randint(1, 80), chance.random() < 0.5)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_thousands_of_schedules_consume_the_same_sequence(folder: Path, data: st.DataObject) -> None:
    story = data.draw(stories(folder))
    plain, stream = located(story, Schedule([(TOTAL, 1, TOTAL)], 7, ramp=False))
    assert len(plain) == TOTAL
    chance = random.Random(data.draw(st.integers(0, 2**32)))
    for _ in range(12):
        found, end = located(story, some_schedule(chance))
        assert np.array_equal(found, plain)
        assert end.state(TOTAL) == stream.state(TOTAL)
    # and the last stream tells the whole past in one call, for those data that are still there
    sizes = [SIZES[name] for name in stream.corpora]
    drawn = [np.sum(plain[:, 0] == list(SIZES).index(name)) for name in stream.corpora]
    assert list(stream.epochs(TOTAL).values()) == [n / size for n, size in zip(drawn, sizes, strict=True)]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), depth=st.integers(1, 5))
def test_ranks_and_prefetchers_hand_over_the_tokens_of_that_sequence(
    folder: Path, data: st.DataObject, depth: int
) -> None:
    story = data.draw(stories(folder))
    plain, _ = located(story, Schedule([(TOTAL, 1, TOTAL)], 16, ramp=False))
    sets = {number: ShardSet(folder / name) for number, name in enumerate(SIZES)}
    expected = np.stack([sets[int(corpus)].read(np.array([position]))[0] for corpus, position in plain])
    schedule = some_schedule(random.Random(data.draw(st.integers(0, 2**32))))
    found: list[np.ndarray] = []

    def consume(stream: Stream, requests: list[tuple[int, int]], ranks: int, micro: int) -> None:
        ranks = min(ranks, 4)
        prefetchers = [Prefetcher(stream, requests, rank, ranks, depth) for rank in range(ranks)]
        for slices in zip(*prefetchers, strict=True):
            found.extend(part.tokens for part in slices)

    live(story, schedule, consume)
    assert np.array_equal(np.concatenate(found), expected)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_epoch_shows_each_sample_once_and_a_segment_of_a_curriculum_has_its_shares(
    folder: Path, data: st.DataObject
) -> None:
    config = data.draw(configs(folder))
    seed = data.draw(st.integers(0, 9))
    stream = Stream(config, seed)
    corpus, position = stream.locate(np.arange(TOTAL))
    sizes = [SIZES[name] for name in stream.corpora]
    starts = [int(s.from_.split()[0]) // LENGTH for s in config.curriculum]
    for c, size in enumerate(sizes):
        shown = position[corpus == c]
        for epoch in range(0, len(shown), size):
            once = shown[epoch : epoch + size]
            assert len(set(once.tolist())) == len(once), "a sample came twice in an epoch"
        for k, segment in enumerate(config.curriculum):
            within = corpus[starts[k] : starts[k + 1] if k + 1 < len(starts) else TOTAL]
            share = segment.weights[stream.corpora[c]] / sum(segment.weights.values())
            assert abs((within == c).sum() - share * len(within)) < c + 1.001
            assert share or not (within == c).any()
