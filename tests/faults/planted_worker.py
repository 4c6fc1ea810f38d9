"""`training.worker` with faults planted in it: wrong numbers, rubbish as data, a rank that is slow.

What is planted is JSON in the environment variable PLANTED:
  {"nan": {"rank": 1, "step": 6}}        during that step, one element of one gradient on one rank alone
  {"rubbish": [[136, 144]]}              ranges of the stream's samples, as they are before any exception
  {"flip": {"rank": 1, "step": 6}}       before that step of the first attempt, a bit of a weight of one rank
  {"unstable": {"rank": 1, "step": 6}}   the same during the step, but right again when it is computed once more
  {"slow": {"rank": 1, "steps": [9, 20], "seconds": 0.2}}   one rank takes longer for the work of those steps
  {"served": "path"}                     append to this file on rank 0 which samples each batch was made of
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from data_pipeline.stream import Batch, Stream
from training import worker
from training.engine.base import Engine
from training.process import RankEnvironment

PLANTED: dict[str, Any] = json.loads(os.environ["PLANTED"])
RUBBISH = range(1, 257)
"""Tokens of single bytes, which text in ASCII never needs: the model comes to hold them for impossible."""


def plant_nan(rank: int, step: int) -> None:
    forward_backward = Engine.forward_backward
    steps = 0

    def spoilt(engine: Engine, micro_batches: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps != step or int(os.environ["RANK"]) != rank:
            return forward_backward(engine, micro_batches)
        first = engine.inputs.shards[0][0]
        hook = first.register_hook(with_nan)
        figures = forward_backward(engine, micro_batches)
        hook.remove()
        return figures

    Engine.forward_backward = spoilt  # type: ignore[method-assign]


def with_nan(gradient: torch.Tensor) -> torch.Tensor:
    spoilt = gradient.clone()
    spoilt.view(-1)[0] = torch.nan
    return spoilt


def plant_flip(rank: int, step: int, *, back: bool) -> None:
    def spoil(engine: Engine, number: int) -> None:
        # The second call of an unstable rank is the same step again.
        if number == step or (back and number == step + 1):
            weight = engine.inputs.shards[3][0].data.view(-1)[:1]
            weight.view(torch.int16).bitwise_xor_(1 << 7)

    if RankEnvironment.read(os.environ).attempt == 0:
        before_each_step(rank, spoil)


def plant_slow(rank: int, steps: list[int], seconds: float) -> None:
    before_each_step(rank, lambda _, number: time.sleep(seconds if steps[0] <= number <= steps[1] else 0.0))


def before_each_step(rank: int, act: Callable[[Engine, int], None]) -> None:
    """Call `act` on one rank before each forward and backward, with its number, counted from 1 in each attempt."""
    forward_backward = Engine.forward_backward
    calls = 0

    def acted(engine: Engine, micro_batches: Any) -> Any:
        nonlocal calls
        calls += 1
        if int(os.environ["RANK"]) == rank:
            act(engine, calls)
        return forward_backward(engine, micro_batches)

    Engine.forward_backward = acted  # type: ignore[method-assign]


def plant_rubbish(ranges: list[list[int]]) -> None:
    batch: Callable[..., Batch] = Stream.batch

    def spoilt(stream: Stream, start: int, size: int, index: int = 0, count: int = 1) -> Batch:
        good = batch(stream, start, size, index, count)
        low, high = start + size * index // count, start + size * (index + 1) // count
        for row, sample in enumerate(stream._shifted(np.arange(low, high, dtype=np.int64))):
            if any(first <= sample < last for first, last in ranges):
                good.tokens[row] = np.random.default_rng(int(sample)).choice(RUBBISH, good.tokens.shape[1])
        return good

    Stream.batch = spoilt  # type: ignore[method-assign]


def note_served(path: str) -> None:
    batch: Callable[..., Batch] = Stream.batch

    def noted(stream: Stream, start: int, size: int, index: int = 0, count: int = 1) -> Batch:
        if index == 0:
            whole = stream._shifted(np.arange(start, start + size, dtype=np.int64))
            with open(path, "a") as file:
                file.write(json.dumps({"start": start, "samples": whole.tolist()}) + "\n")
        return batch(stream, start, size, index, count)

    Stream.batch = noted  # type: ignore[method-assign]


if __name__ == "__main__":
    if "nan" in PLANTED:
        plant_nan(**PLANTED["nan"])
    if "flip" in PLANTED:
        plant_flip(**PLANTED["flip"], back=False)
    if "unstable" in PLANTED:
        plant_flip(**PLANTED["unstable"], back=True)
    if "slow" in PLANTED:
        plant_slow(**PLANTED["slow"])
    if "rubbish" in PLANTED:
        plant_rubbish(PLANTED["rubbish"])
    if "served" in PLANTED:
        note_served(PLANTED["served"])
    sys.exit(worker.main(sys.argv[1:]))
