"""The memory of a rank by formula; tests/distributed/test_memory.py compares it with what real steps take."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

from tests.distributed.memory_cases import case, document_of
from training.memory import RankMemory, rank_memory
from training.recipe import Recipe, parse_recipe


def recipe(model: str = "tied", ranks: int = 1, **layout: Any) -> Recipe:
    return parse_recipe(document_of(case(model, 1, "bf16", **layout), ranks, scale=16))


def test_the_peak_is_what_is_on_the_device_together() -> None:
    memory = RankMemory(weights=1, gradients=2, optimizer=4, activations=8, logits=16, buffers=32, host=64)
    assert memory.peak == 63


def test_memory_is_known_without_torch() -> None:
    script = "import sys, training.memory; sys.exit('torch' in sys.modules or 'deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=120, check=False).returncode == 0


def test_earlier_stages_keep_more_micro_batches_and_the_last_one_the_logits() -> None:
    piped = recipe(ranks=4, pipeline=4)
    stages = [rank_memory(piped, 4, stage) for stage in range(4)]
    kept = [stage.activations for stage in stages]
    assert kept == sorted(kept, reverse=True) and kept[0] > 2.5 * kept[3]
    assert [stage.logits > 0 for stage in stages] == [False, False, False, True]


def test_recomputing_keeps_less() -> None:
    peaks = []
    for how in ("none", "selective", "full"):
        one = recipe()
        one.training.recompute = how  # type: ignore[assignment]
        peaks.append(rank_memory(one, 1, 0).activations)
    assert peaks[0] > peaks[1] > peaks[2]


def test_an_offloaded_optimizer_is_on_the_host() -> None:
    here = recipe(ranks=2)
    away = replace(here.parallel, offload_optimizer=True)
    kept, moved = rank_memory(here, 2, 0), rank_memory(here, 2, 0, away)
    assert (kept.host, moved.optimizer) == (0, 0)
    assert moved.host > kept.optimizer and moved.peak < kept.peak


def test_nothing_of_a_rank_grows_with_the_ranks_that_share_its_work() -> None:
    peaks = [rank_memory(recipe(ranks=ranks), ranks, 0).peak for ranks in (2, 8, 1024)]
    assert peaks == sorted(peaks, reverse=True)
