"""How often a plan's corpora are read: from shards that are there, or from sizes that a mix declares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.config import DataConfig, ShardSource
from launcher.job import Job
from launcher.plan.data import epochs_of
from tests.data_pipeline.shard_sets import write_set
from tests.launcher.plan_jobs import changed, decoder

# Brown et al. 2020, table 2.2: tokens and weight in the mix.
GPT3 = {
    "commoncrawl": ("410B", 0.60),
    "webtext2": ("19B", 0.22),
    "books1": ("12B", 0.08),
    "books2": ("55B", 0.08),
    "wikipedia": ("3B", 0.03),
}


def job(sources: list[ShardSource]) -> Job:
    return changed(decoder(), data=DataConfig(mix=sources))


def test_epochs_of_gpt3s_mix_are_the_papers() -> None:
    declared = [ShardSource(f"nowhere/{name}", weight, tokens) for name, (tokens, weight) in GPT3.items()]
    found = epochs_of(job(declared), 300 * 10**9)
    # Table 2.2 prints 0.44, 2.9, 1.9, 0.43 and 3.4; with these weights, which sum to 101 %, it comes to this.
    expected = {"commoncrawl": 0.435, "webtext2": 3.44, "books1": 1.98, "books2": 0.432, "wikipedia": 2.97}
    assert found == pytest.approx(expected, rel=0.01)


def test_shards_that_are_there_are_counted_and_those_that_are_nowhere_leave_it_open(tmp_path: Path) -> None:
    write_set(tmp_path / "many", 300, length=2048)
    write_set(tmp_path / "few", 100, length=2048)
    there = [ShardSource(str(tmp_path / "many"), 0.5), ShardSource(str(tmp_path / "few"), 0.5)]
    assert epochs_of(job(there), 400 * 2048) == pytest.approx({"many": 200 / 300, "few": 2.0}, abs=0.02)
    gone = [there[0], replace(there[1], shards=str(tmp_path / "nowhere"))]
    assert epochs_of(job(gone), 400 * 2048) is None
    assert epochs_of(job([]), 400 * 2048) is None
