"""Optimizer steps of tiny models on any layout, for comparing layouts with one another. Runs on every rank of a
launch.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
import torch.distributed as dist

from modeling import groups, megatron_bridge
from modeling.execution import Execution
from modeling.layout import Layout
from modeling.registry import family
from training.config import OptimizerConfig, ParallelConfig
from training.engine import Engine, start_engine

MODELS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_embeddings": False},
    "llama": {
        "tie_embeddings": False,
        "positions": "rotary",
        "normalization": "rmsnorm",
        "activation": "swiglu",
        "num_query_groups": 2,
        "biases": False,
        "ffn_hidden_size": 96,
    },
}
SHAPE = {"num_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "sequence_length": 16, "vocab_size": 131}
GLOBAL_BATCH, MICRO_BATCH = 4, 1


def tokens_of_step(step: int, size: int = GLOBAL_BATCH) -> torch.Tensor:
    """The global batch of a step, `[size, s + 1]`, the same on every rank and layout."""
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randint(0, SHAPE["vocab_size"], (size, SHAPE["sequence_length"] + 1), generator=generator)


_started: Layout | None = None


def _start_groups(layout: Layout) -> groups.Coordinates:
    """The groups of the case before are kept if they fit: each gloo group costs threads that outlive it for a while."""
    global _started
    if _started != layout:
        if _started is not None:
            groups.stop_groups()
            gc.collect()  # a gloo group's threads end when nothing refers to it any more
        groups.start_groups(layout)
        _started = layout
    return groups.coordinates()


def start(case: dict[str, Any]) -> Engine:
    """Process groups and engine of a case {model, layout: {tensor…}, zero_stage, precision, …}."""
    offload = case.get("offload", False)
    parallel = ParallelConfig(**case["layout"], zero_stage=case["zero_stage"], offload_optimizer=offload)
    layout = Layout(parallel.tensor, parallel.pipeline, parallel.virtual_pipeline, parallel.sequence)
    here = _start_groups(layout)
    megatron_bridge.seed_dropout(1, here.tensor)
    chosen = family("gpt")
    model = chosen.config(**SHAPE, **MODELS[case["model"]])
    optimizer = OptimizerConfig(lr=2e-3, **case.get("optimizer", {}))
    execution = Execution(layout, precision=case["precision"], recompute=case.get("recompute", "none"))
    return start_engine(chosen, model, optimizer, parallel, execution, MICRO_BATCH)


def stop(engine: Engine) -> None:
    engine.close()


def step(engine: Engine, tokens: torch.Tensor) -> tuple[float, float]:
    """One optimizer step on a global batch: (mean loss, gradient norm), the same numbers on every rank."""
    here = groups.coordinates()
    mine = tokens.chunk(here.data_size)[here.data]
    figures = engine.forward_backward([{"tokens": micro} for micro in mine.split(MICRO_BATCH)])
    total = torch.zeros((), dtype=torch.float64)
    if groups.is_last_stage() and here.tensor == 0:
        total += sum(f["sample_losses"].double().sum() for f in figures)
    dist.all_reduce(total)
    return float(total) / len(tokens), engine.step(2e-3).grad_norm


def train_cases(cases: list[dict[str, Any]]) -> list[dict[str, list[float]]]:
    """Losses and gradient norms of each case, one after the other in the same processes."""
    results = []
    for case in sorted(cases, key=lambda case: str(case["layout"])):
        engine = start(case)
        curve = [step(engine, tokens_of_step(i)) for i in range(case["steps"])]
        stop(engine)
        del engine
        results.append({"case": case, "loss": [x for x, _ in curve], "grad_norm": [x for _, x in curve]})
    return results
