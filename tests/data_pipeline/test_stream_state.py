"""Whatever happens to a run, the samples it consumes are one sequence: the closed forms against a plain simulation, and
thousands of schedules against each other.
"""

from __future__ import annotations

import dataclasses
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
from data_pipeline.errors import BadConfig, DamagedShard, DataMismatch
from data_pipeline.prefetch import Prefetcher
from data_pipeline.shard_reader import ShardSet
from data_pipeline.stream import Stream
from tests.data_pipeline.shard_sets import LENGTH, flip_a_bit, mix, write_set

SIZES = {"one": 1, "few": 7, "some": 50, "more": 203, "lots": 997}
TOTAL = 400  # consumed samples of a schedule


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sets")
    for number, (name, samples) in enumerate(SIZES.items()):
        write_set(made / name, samples, rows=4 + number)
    return made


def tokens_of(samples: int) -> str:
    return f"{samples * LENGTH} tokens"


def rewritten(config: DataConfig, **changes: Any) -> DataConfig:
    return dataclasses.replace(config, **changes)


# -- schedules --------------------------------------------------------------------------------------------------------


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
def test_closed_forms_are_what_a_plain_simulation_gives(folder: Path, data: st.DataObject) -> None:
    """Each corpus goes on by one, from the first epoch to the next, whatever the weights become."""
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


# -- curriculum -------------------------------------------------------------------------------------------------------


def test_a_batch_may_straddle_a_boundary_and_nothing_repeats_at_it(folder: Path) -> None:
    config = mix(folder, more=1.0, lots=0.0)
    config.curriculum = [
        CurriculumSegment(f"{100 * LENGTH - 3} tokens", {"lots": 1}),
        CurriculumSegment("1640 tokens", {"more": 1}),
    ]
    stream = Stream(config, seed=3)
    corpus, position = stream.locate(np.arange(300))
    assert corpus.tolist() == [0] * 100 + [1] * 105 + [0] * 95  # ceil(797 / 8), 1640 / 8
    assert len(set(position[corpus == 0].tolist())) == 195 and len(set(position[corpus == 1].tolist())) == 105
    straddling = stream.batch(96, 16)
    assert straddling.corpus.tolist() == [0] * 4 + [1] * 12
    alone = Stream(mix(folder, more=1.0), seed=3).locate(np.arange(195))[1]
    assert np.array_equal(position[corpus == 0], alone), "a corpus goes on where it was"
    assert stream.epochs(300) == {"more": 195 / 203, "lots": 105 / 997}


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        ([("5 steps", {"more": 1})], 'data.curriculum.0.from is "5 steps": give it in tokens'),
        ([("a while", {"more": 1})], '"a while" is no duration'),
        (
            [("8 tokens", {"more": 1}), ("8 tokens", {"some": 1})],
            "data.curriculum.1.from is 8 tokens, which is not after",
        ),
        (
            [("8 tokens", {"less": 1})],
            "data.curriculum.0.weights names less, which is no corpus of data.mix (more, some)",
        ),
        ([("8 tokens", {"more": 0})], "data.curriculum.0.weights needs positive weights"),
        ([("8 tokens", {"more": -1, "some": 2})], "data.curriculum.0.weights needs positive weights"),
        ([("8 tokens", {"more": float("nan")})], "data.curriculum.0.weights needs positive weights"),
    ],
)
def test_impossible_curriculum_is_refused_with_its_key(
    folder: Path, segments: list[tuple[str, dict[str, float]]], said: str
) -> None:
    config = mix(folder, more=1, some=1)
    config.curriculum = [CurriculumSegment(start, weights) for start, weights in segments]
    with pytest.raises(BadConfig) as caught:
        Stream(config, 1)
    assert said in str(caught.value)


def test_a_corpus_without_any_weight_is_refused(folder: Path) -> None:
    with pytest.raises(BadConfig, match="some has none, neither there nor in"):
        Stream(mix(folder, more=1, some=0), 1)
    with pytest.raises(BadConfig, match="shuffle_window is 0"):
        Stream(rewritten(mix(folder, more=1), shuffle_window=0), 1)


# -- changes ----------------------------------------------------------------------------------------------------------


def test_other_data_are_refused_with_the_way_out_and_taken_over_on_request(folder: Path) -> None:
    old, new = mix(folder, more=2, some=1), mix(folder, lots=1, more=1)
    before = Stream(old, 5)
    before.skip(30, 10)
    state = json.loads(json.dumps(before.state(120)))
    with pytest.raises(DataMismatch, match=r"mix was more, some and is lots, more; .* --data\.allow-change"):
        Stream.continuing(new, 5, state)
    stream = Stream.continuing(rewritten(new, allow_change=True), 5, state)
    assert stream.changed == "the mix was more, some and is lots, more"
    (_, change) = stream.state(120)["exceptions"]
    assert (change["kind"], change["at"]) == ("change", 120)
    corpus, position = stream.locate(np.arange(120, 320))
    was_corpus, was = before.locate(np.arange(120))
    seen, shown = was[was_corpus == 0].tolist(), position[corpus == 1].tolist()
    skipped = Stream(old, 5).locate(np.arange(30, 40))
    left_out = skipped[1][skipped[0] == 0].tolist()
    # "more" goes on where it was, what was skipped of it included; "lots" begins
    order = Stream(mix(folder, more=1), 5).locate(np.arange(203))[1].tolist()
    assert sorted(seen + left_out) == sorted(order[: len(seen) + len(left_out)])
    assert shown == order[len(seen) + len(left_out) :][: len(shown)]
    assert position[corpus == 0].tolist() == Stream(mix(folder, lots=1), 5).locate(np.arange(100))[1].tolist()
    assert stream.epochs(320) == {"lots": 100 / 997, "more": (len(seen) + 100) / 203}

    # what was read of "some" is gone, what was read of "more" is not
    first = int(np.flatnonzero(was_corpus == 1)[0])
    with pytest.raises(DataMismatch, match=r"shards of some that data\.mix does not name any more"):
        stream.batch(first, 1)
    assert np.array_equal(stream.batch(0, first).tokens, before.batch(0, first).tokens)

    # the permission was for that resume
    again = json.loads(json.dumps(stream.state(200)))
    assert Stream.continuing(new, 5, again).changed is None
    with pytest.raises(DataMismatch, match=r"the weight of lots was 0\.5 and is 0\.9"):
        Stream.continuing(mix(folder, lots=9, more=1), 5, again)
    # and a run that goes back to the checkpoint before the change is still the same run
    stream.check_state(state)


def test_what_was_read_before_other_weights_is_replayed_exactly(folder: Path) -> None:
    old = mix(folder, more=2, some=1)
    before = Stream(old, 5)
    stream = Stream.continuing(rewritten(mix(folder, more=1, some=9), allow_change=True), 5, before.state(100))
    assert np.array_equal(stream.batch(0, 100).tokens, before.batch(0, 100).tokens)
    assert stream.changed is not None and stream.changed.startswith("the weight of more was 0.666667 and is 0.1")
    corpus, _ = stream.locate(np.arange(100, 200))
    assert (corpus == 0).sum() == 10


def test_other_shards_of_the_same_name_begin_at_their_first_sample(folder: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "more", 60, seed=9)
    state = Stream(mix(folder, more=1), 5).state(150)
    new = mix(tmp_path, more=1)
    with pytest.raises(DataMismatch, match=r"the shards of more are others \(203 samples then, 60 now\)"):
        Stream.continuing(new, 5, state)
    stream = Stream.continuing(rewritten(new, allow_change=True), 5, state)
    assert np.array_equal(stream.locate(np.arange(150, 210))[1], Stream(new, 5).locate(np.arange(60))[1])
    assert stream.epochs(180) == {"more": 0.5}
    with pytest.raises(DataMismatch, match=r"203 samples, manifest [0-9a-f]{12}\): name them again"):
        stream.batch(149, 2)


def test_another_shuffle_is_named_with_the_setting_that_keeps_it_and_begins_with_the_next_epoch(folder: Path) -> None:
    windowed = rewritten(mix(folder, more=1), shuffle="windowed", shuffle_window=3)
    state = Stream(windowed, 5).state(150)
    with pytest.raises(
        DataMismatch, match=r"windowed \(window 3\) and is full \(keep it: set data.shuffle: windowed and "
    ):
        Stream.continuing(mix(folder, more=1), 5, state)
    stream = Stream.continuing(rewritten(mix(folder, more=1), allow_change=True), 5, state)
    full = Stream(mix(folder, more=1), 5)
    assert np.array_equal(stream.locate(np.arange(150, 353))[1], full.locate(np.arange(203, 406))[1])
    assert stream.epochs(353) == {"more": 353 / 203}


def test_seed_and_length_cannot_change_at_all(folder: Path, tmp_path: Path) -> None:
    allowed = rewritten(mix(folder, more=1), allow_change=True)
    state = Stream(allowed, 5).state(10)
    with pytest.raises(DataMismatch, match=r"seed was 5 and is 6; set it back$"):
        Stream.continuing(allowed, 6, state)
    write_set(tmp_path / "more", 60, length=16)
    with pytest.raises(DataMismatch, match="sequence_length was 8 and is 16"):
        Stream.continuing(rewritten(mix(tmp_path, more=1), allow_change=True), 5, state)


def test_a_run_that_goes_back_past_a_change_leaves_out_what_it_had_drawn(folder: Path) -> None:
    stream = Stream(mix(folder, more=1, some=1), 5)
    new = rewritten(mix(folder, lots=1, more=1), allow_change=True)
    stream = Stream.continuing(new, 5, stream.state(100))
    expected = stream.locate(np.arange(140, 200))
    stream.skip(60, 80)  # at sample 140 the loss spiked; the checkpoint gone back to was of sample 60
    found = stream.locate(np.arange(60, 120))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    resumed = Stream.continuing(rewritten(new, allow_change=False), 5, stream.state(80))
    assert np.array_equal(resumed.batch(80, 40).tokens, stream.batch(80, 40).tokens)
    before, after = Stream(mix(folder, more=1, some=1), 5).epochs(60)["more"], (expected[0] == 1).sum() / 203
    assert resumed.epochs(120)["more"] == pytest.approx(before + after)


# -- states of older versions -----------------------------------------------------------------------------------------

# Written by the last version that wrote format 1, over the sets of `folder`, as are the corpora and positions that it
# gave for consumed samples 30 to 50; never to be written again.
GOLDEN_1 = """{"format_version": 1, "samples": 48, "exceptions": [{"kind": "skip", "at": 32, "count": 16}],
 "fingerprint": {"seed": 7, "sequence_length": 8, "tokenizer_sha256": "0",
  "mix": [{"name": "more", "weight": 0.7, "samples": 203, "manifest_sha256": "MORE"},
          {"name": "some", "weight": 0.3, "samples": 50, "manifest_sha256": "SOME"}]}}"""
GOLDEN_POSITIONS = [
    [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0],
    [47, 143, 134, 0, 123, 99, 61, 18, 98, 202, 27, 57, 151, 5, 185, 119, 93, 13, 66, 62],
]


def test_states_of_format_1_keep_loading_and_mean_the_same_samples(folder: Path) -> None:
    text = GOLDEN_1
    for name in ("more", "some"):
        text = text.replace(name.upper(), ShardSet(folder / name).manifest_sha256)
    state = json.loads(text)
    config = mix(folder, more=0.7, some=0.3)
    stream = Stream.continuing(config, 7, state)
    assert stream.changed is None
    corpus, position = stream.locate(np.arange(30, 50))
    assert np.stack([corpus, position]).tolist() == GOLDEN_POSITIONS
    Stream.continuing(config, 7, stream.state(60))
    with pytest.raises(DataMismatch, match="the curriculum was none and is from sample 10 on more 0, some 1"):
        Stream.continuing(rewritten(config, curriculum=[CurriculumSegment("80 tokens", {"some": 1})]), 7, state)
    with pytest.raises(DataMismatch, match=r"the shuffle was full and is windowed \(window 64\)"):
        Stream.continuing(rewritten(config, shuffle="windowed"), 7, state)


@pytest.mark.parametrize(
    "exception",
    [
        {"kind": "dance", "at": 1},
        {"kind": "skip", "at": -1, "count": 2},
        {"kind": "skip", "at": 1},
        {"kind": "substitute", "corpus": 3, "member": 1},
        {"kind": "change", "at": 1},
        {},
    ],
)
def test_unknown_exceptions_are_refused(folder: Path, exception: dict[str, Any]) -> None:
    with pytest.raises(DataMismatch, match="unknown exception in the data state"):
        Stream(mix(folder, more=1), 1, [exception])


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path) -> DataConfig:
    """Ten members, of which 3 is damaged, and those of the third tar, 6 to 8, are gone."""
    write_set(tmp_path / "web", 78, rows=8)
    flip_a_bit(tmp_path / "web", 3)
    (tmp_path / "web" / "00002.tar").unlink()
    return mix(tmp_path, web=1)


def test_damage_stops_the_stream_with_tar_and_member(damaged: DataConfig) -> None:
    with pytest.raises(DamagedShard, match=r"00001\.tar is damaged: member 000000003\.npy fails its CRC"):
        Stream(damaged, 1)._sets[0].read(np.arange(24, 32))
    with pytest.raises(DamagedShard, match=r"00002\.tar cannot be opened: No such file"):
        Stream(damaged, 1)._sets[0].read(np.arange(48, 56))
    with pytest.raises(DamagedShard):
        Stream(damaged, 1).batch(0, 78)


def test_damaged_members_are_replaced_by_others_the_same_for_every_rank_and_resume(damaged: DataConfig) -> None:
    config = rewritten(damaged, on_damaged="substitute")
    whole = Stream(config, 1)
    batch = whole.batch(0, 156).tokens
    ranks = [Stream(config, 1) for _ in range(3)]
    parts = [rank.batch(0, 156, index, 3).tokens for index, rank in enumerate(ranks)]
    assert np.array_equal(np.concatenate(parts), batch)
    found = [entry for rank in ranks for entry in rank.found_damage()]
    assert {entry["member"] for entry in found} == {3, 6, 7, 8} and len(found) > 4
    assert all("prepare" in e["reason"] or "cannot be opened" in e["reason"] for e in found)
    told = [rank.substitute(found) for rank in ranks]
    assert [e["member"] for e in told[0]] == [3, 6, 7, 8] and told[0] == told[1] == told[2]
    assert ranks[0].substitute(found) == [] and ranks[0].found_damage() == []
    assert ranks[0].state(1) == ranks[2].state(1)

    state = json.loads(json.dumps(ranks[1].state(40)))
    assert state["exceptions"][0] == {"kind": "substitute", "corpus": "web", "member": 3}
    resumed = Stream.continuing(rewritten(damaged, on_damaged="stop"), 1, state)  # the damaged members are not touched
    assert np.array_equal(resumed.batch(0, 156).tokens, batch)
    assert resumed.found_damage() == []
    _, position = resumed.locate(np.arange(78))
    assert not {3, 6, 7, 8} & set((position // 8).tolist())
    assert np.array_equal(resumed._sets[0].read(position), batch[:78])
    healthy = Stream(config, 1)._locate(np.arange(78))[1]
    untouched = ~np.isin(healthy // 8, [3, 6, 7, 8])
    assert np.array_equal(position[untouched], healthy[untouched])
    assert resumed.epochs(156) == {"web": 2.0}


def test_a_store_that_is_gone_is_no_damage_to_make_up_for(tmp_path: Path) -> None:
    write_set(tmp_path / "web", 400, rows=8)
    stream = Stream(rewritten(mix(tmp_path, web=1), on_damaged="substitute"), 1)
    for tar in (tmp_path / "web").glob("*.tar"):
        tar.unlink()
    with pytest.raises(DamagedShard, match="and the 16 that could stand in for it are all damaged or out of reach"):
        stream.batch(0, 8)


def test_a_shard_deleted_under_a_running_job_is_named_when_it_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_pipeline.shard_members._OPEN_FILES", 1)
    write_set(tmp_path / "web", 78, rows=8)
    stream = Stream(mix(tmp_path, web=1), 1)
    first = stream.batch(0, 78).tokens
    (tmp_path / "web" / "00001.tar").unlink()
    with pytest.raises(DamagedShard, match=r"00001\.tar cannot be opened: No such file or directory"):
        stream.batch(0, 78)
    going_on = Stream(rewritten(mix(tmp_path, web=1), on_damaged="substitute"), 1).batch(0, 78).tokens
    assert 0 < (going_on != first).any(axis=1).sum() <= 24
