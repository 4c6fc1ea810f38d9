"""What ranks hold while a run goes on, in worlds of several sizes. Runs on every rank of a launch."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from training.process import Heartbeat, RankEnvironment, StopRequest
from training.recipe import check, load_recipe
from training.worker import train_in_group, with_vocabulary

_FROM_STEP = 3
"""Whatever the first steps and the first checkpoint set up is there."""


class Scale(Heartbeat):
    """Weighs the process after each step and keeps the most."""

    def __init__(self) -> None:
        super().__init__(None)
        self.tensor_bytes = self.python_bytes = self.python_peak_bytes = self.before = self.step = 0

    def begin(self) -> None:
        gc.collect()
        tracemalloc.reset_peak()
        self.before = tracemalloc.get_traced_memory()[0]  # 0 while nothing is traced

    def beat(self, step: int) -> None:
        if step > self.step >= _FROM_STEP - 1:
            gc.collect()
            self.tensor_bytes = max(self.tensor_bytes, live_tensor_bytes())
            now, peak = (traced - self.before for traced in tracemalloc.get_traced_memory())
            self.python_bytes, self.python_peak_bytes = max(self.python_bytes, now), peak
        self.step = step


def live_tensor_bytes() -> int:
    """Bytes behind all tensors that Python knows, each piece of memory once."""
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def weigh_worlds(argument: dict[str, Any]) -> list[dict[str, int] | None]:
    """Train {recipe, folder, worlds} in a world of each size in turn, its batch growing with it: what this rank held.

    None for worlds that this rank is not in.
    """
    me, everyone, folder = dist.get_rank(), dist.get_world_size(), Path(argument["folder"])
    dist.destroy_process_group()
    # Code and what it keeps once a process are not what is asked for: have them before anything is weighed.
    _join(folder / f"store-alone-{me}", 0, 1)
    _weigh(argument["recipe"], folder / f"run-alone-{me}", 0, 1)
    dist.destroy_process_group()
    gc.freeze()  # what is there by now need not be looked through after every step
    tracemalloc.start()
    found: list[dict[str, int] | None] = []
    for size in argument["worlds"]:
        if me >= size:
            found.append(None)
            continue
        _join(folder / f"store-{size}", me, size)
        found.append(_weigh(argument["recipe"], folder / f"run-{size}", me, size))
        dist.destroy_process_group()
    tracemalloc.stop()
    gc.unfreeze()
    _join(folder / "store-all", me, everyone)  # the launch ends with a barrier of all
    return found


def _join(file: Path, rank: int, size: int) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(file), size), rank=rank, world_size=size)


def _weigh(recipe_file: str, folder: Path, rank: int, size: int) -> dict[str, int]:
    recipe = with_vocabulary(load_recipe(Path(recipe_file)))
    recipe.batch.global_batch_size *= size
    check(recipe, size)
    scale = Scale()
    scale.begin()
    stop = StopRequest(dist.HashStore(), scale)  # nobody signals this run
    assert train_in_group(recipe, folder, RankEnvironment(rank, size), scale, stop)
    gc.collect()
    return {
        "tensor_bytes": scale.tensor_bytes,
        "python_bytes": scale.python_bytes,
        "python_peak_bytes": scale.python_peak_bytes,
    }
