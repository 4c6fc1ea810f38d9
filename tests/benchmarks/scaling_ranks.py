"""What the ranks of a scaling benchmark do: engines of one layout after the other, whose steps are timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist

from modeling import groups, megatron_bridge
from modeling.execution import Execution
from modeling.layout import Layout
from modeling.registry import family
from training.config import OptimizerConfig, ParallelConfig
from training.engine import Engine, start_engine
from training.process import RankEnvironment


def time_cases(argument: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each case in each round, and of this rank's start.

    `argument`: `rounds`; `cases`, each with `layout` (of ParallelConfig), `shape` (of GPTConfig), `micro_batch_size`,
    `micro_batches` (of a data-parallel rank) and `step` (whether the optimizer's step is timed, too). Cases of one
    layout are timed in turns, so that what else the machine does meets all of them.
    """
    imported = time.monotonic()
    begun = RankEnvironment().begun
    cases: list[dict[str, Any]] = argument["cases"]
    seconds: list[list[float]] = [[] for _ in cases]
    started: dict[str, float] = {}
    for _, numbered in groupby(enumerate(cases), key=lambda one: str(one[1]["layout"])):
        members = list(numbered)
        before = time.monotonic()
        parallel = ParallelConfig(**members[0][1]["layout"])
        layout = Layout(parallel.tensor, parallel.pipeline, parallel.virtual_pipeline, parallel.sequence)
        groups.start_groups(layout)
        grouped = time.monotonic()
        engines: dict[str, Engine] = {}
        works = []
        for number, case in members:
            key = str((case["shape"], case["micro_batch_size"]))
            if key not in engines:
                engines[key] = start(case, parallel, layout)
            works.append((number, work_of(engines[key], case)))
        built = time.monotonic()
        for _, work in works:
            work()
        if not started:
            first = time.monotonic()
            started = {
                "imports": imported - begun,
                "groups": grouped - before,
                "engine": built - grouped,
                "first_step": first - built,
                "all": first - begun,
                "cpu": time.process_time(),
            }
        for _ in range(argument["rounds"]):
            for number, work in works:
                dist.barrier()
                begin = time.perf_counter()
                work()
                dist.barrier()
                seconds[number].append(time.perf_counter() - begin)
        for engine in engines.values():
            engine.close()
        groups.stop_groups()
    return {"seconds": seconds, "start": started}


def start(case: dict[str, Any], parallel: ParallelConfig, layout: Layout) -> Engine:
    """The engine of a case, on the groups that have been started."""
    chosen = family("gpt")
    megatron_bridge.seed_dropout(1, groups.coordinates().tensor)
    execution = Execution(layout, "bf16")
    config = chosen.config(**case["shape"])
    return start_engine(chosen, config, OptimizerConfig(), parallel, execution, case["micro_batch_size"])


def work_of(engine: Engine, case: dict[str, Any]) -> Callable[[], None]:
    """What is timed: the micro-batches of a step, forward and backward; with the optimizer's step if `step`."""
    generator = torch.Generator().manual_seed(1)
    shape = (case["micro_batch_size"], case["shape"]["sequence_length"] + 1)
    batches = [
        {"tokens": torch.randint(case["shape"]["vocab_size"], shape, generator=generator)}
        for _ in range(case["micro_batches"])
    ]

    def work() -> None:
        engine.forward_backward(batches)
        if case["step"]:
            engine.step(1e-4)

    return work
