"""Rank 0 holds no more than the others, and nobody more because there are more ranks: the whole product, saving too."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.benchmarks.common import prepare_shards
from tests.distributed.launch import run

WORLDS = [1, 2, 4]
KB = 1000
EXTRA = 300 * KB
"""Python bytes: the writers of rank 0, and how far two ranks' differ otherwise (measured: 90 kB at most)."""

RECIPE = """
run: {name: test, seed: 7}
model: {family: gpt, num_layers: 4, hidden_size: 32, num_attention_heads: 4, sequence_length: 32}
data: {mix: [{shards: SHARDS/text}]}
batch: {global_batch_size: 2, micro_batch_size: 1}
optimizer: {lr: 2.0e-3, warmup: 3}
training: {steps: 4, precision: bf16, log_every: 1}
checkpoint: {every: 2, keep: 2}
"""


@pytest.mark.timeout(280 + 60)
def test_nothing_on_a_rank_grows_with_the_world_and_rank_0_is_as_the_others(tmp_path: Path) -> None:
    prepare_shards(tmp_path, sequence_length=32, vocab_size=512)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("SHARDS", f"{tmp_path}/shards"))
    argument = {"recipe": str(tmp_path / "recipe.yaml"), "folder": str(tmp_path), "worlds": WORLDS}
    ranks = run("tests.distributed.rank_memory:weigh_worlds", max(WORLDS), argument, deadline=280)
    worlds = [[rank[number] for rank in ranks[:size]] for number, size in enumerate(WORLDS)]
    for world in worlds:
        first, others = world[0], world[1:]
        assert all(first["tensor_bytes"] == other["tensor_bytes"] > 0 for other in others)
        for key in ("python_bytes", "python_peak_bytes"):
            assert all(abs(first[key] - other[key]) < EXTRA for other in others)
    for fewer, more in pairwise(worlds):
        # The batch grows with the ranks, and ZeRO 1 divides the optimizer's state.
        assert max(rank["tensor_bytes"] for rank in more) < min(rank["tensor_bytes"] for rank in fewer)
        assert more[0]["python_bytes"] < fewer[0]["python_bytes"] + EXTRA / 3
        assert more[0]["python_peak_bytes"] < fewer[0]["python_peak_bytes"] + EXTRA
