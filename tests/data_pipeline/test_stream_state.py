"""Curricula, changes of the data on a resume, and what the stream's state keeps of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.config import CurriculumSegment
from data_pipeline.errors import BadConfig, DataMismatch
from data_pipeline.shard_reader import ShardSet
from data_pipeline.stream import Stream
from tests.data_pipeline.shard_sets import LENGTH, mix, rewritten, write_set, write_sets


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"))


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
