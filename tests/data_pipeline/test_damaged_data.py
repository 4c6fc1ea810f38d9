"""Damaged and missing members: told by name, or replaced by others, the same ones for every rank and resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.errors import DamagedShard
from data_pipeline.stream import Stream
from tests.data_pipeline.shard_sets import flip_a_bit, mix, rewritten, write_set


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
