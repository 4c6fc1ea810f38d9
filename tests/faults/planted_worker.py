"""`training.worker` with faults planted in it: a gradient that is not a number, data that is rubbish.

What is planted is JSON in the environment variable PLANTED:
  {"nan": {"rank": 1, "step": 6}}        during that step, one element of one gradient on one rank alone
  {"rubbish": [[136, 144]]}              ranges of the stream's samples, as they are before any exception
  {"served": "path"}                     append to this file on rank 0 which samples each batch was made of
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from data_pipeline.stream import Batch, Stream
from training import worker
from training.engine.base import Engine

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
    if "rubbish" in PLANTED:
        plant_rubbish(PLANTED["rubbish"])
    if "served" in PLANTED:
        note_served(PLANTED["served"])
    sys.exit(worker.main(sys.argv[1:]))
