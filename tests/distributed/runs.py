"""Whole runs, with real shards and checkpoints, on the ranks of a launch."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch.distributed as dist

from training.process import Heartbeat, RankEnvironment, StopRequest
from training.recipe import check, load_recipe
from training.worker import train_in_group, with_vocabulary


def train_runs(specifications: list[dict[str, Any]]) -> list[bool]:
    """Train each {recipe, folder, overrides} one after the other; whether each came to its end."""
    results = []
    for one in specifications:
        recipe = with_vocabulary(load_recipe(Path(one["recipe"]), one["overrides"]))
        environment = RankEnvironment(dist.get_rank(), dist.get_world_size())
        check(recipe, environment.world_size)
        heartbeat = Heartbeat(None)
        stop = StopRequest(dist.HashStore(), heartbeat)  # nobody signals these runs
        results.append(train_in_group(recipe, Path(one["folder"]), environment, heartbeat, stop))
        gc.collect()
    return results
