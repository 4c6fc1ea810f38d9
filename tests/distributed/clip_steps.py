"""Optimizer steps of a tiny CLIP on any layout and ZeRO stage, for comparing them with one another. Runs on every rank
of a launch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from modeling import groups
from modeling.execution import Execution
from modeling.layout import Layout
from modeling.registry import family
from tests.distributed.coupled import SHAPE, pairs
from tests.distributed.key_biases import depended_on
from tests.distributed.steps import _start_groups
from training.config import OptimizerConfig, ParallelConfig
from training.engine import Engine, start_engine

GLOBAL_BATCH = 10


def start(case: dict[str, Any]) -> Engine:
    """Process groups and engine of a case {model, layout, zero_stage, precision, micro}."""
    parallel = ParallelConfig(**case["layout"], zero_stage=case["zero_stage"])
    layout = Layout(parallel.tensor, parallel.pipeline, parallel.virtual_pipeline, parallel.sequence)
    _start_groups(layout)
    chosen = family("clip")
    model = chosen.config(**SHAPE, **case["model"])
    execution = Execution(layout, precision=case["precision"], recompute=case.get("recompute", "none"))
    optimizer = OptimizerConfig(lr=2e-3, clip_grad_norm=0.5)
    return start_engine(chosen, model, optimizer, parallel, execution, case["micro"])


def step(engine: Engine, number: int, micro: int) -> tuple[float, float]:
    """One optimizer step on the same global batch each time: (loss, gradient norm), the same numbers on every rank."""
    here = groups.coordinates()
    batch = pairs(GLOBAL_BATCH, seed=1000)
    low, high = (GLOBAL_BATCH * (here.data + i) // here.data_size for i in (0, 1))
    parts = [value[low:high].split(micro) for value in batch.values()]
    engine.dropout_seed = number
    figures = engine.forward_backward([dict(zip(batch, part, strict=True)) for part in zip(*parts, strict=True)])
    total = torch.zeros((), dtype=torch.float64)
    if here.tensor == 0:
        total += sum(f["sample_losses"].double().sum() for f in figures)
    dist.all_reduce(total)
    return float(total) / GLOBAL_BATCH, engine.step(2e-3).grad_norm


def state(engine: Engine) -> dict[str, tuple[float, float]]:
    """(sum, sum of squares) over all ranks of every parameter's stored values, as a checkpoint would hold them, but for
    those that no loss depends on.
    """
    names = sorted({shard.name for _, shard in engine.inputs.shards})
    sums = torch.zeros(len(names), 2, dtype=torch.float64)
    for piece, tensor in engine.pieces():
        if piece.kind == "weight":
            values = tensor.double()
            if (counts := depended_on(piece.name, heads=2, groups=2, head_size=16)) is not None:
                first = piece.box_offset[0] + piece.flat_start
                values = values[counts[first : first + piece.numel]]
            sums[names.index(piece.name)] += torch.stack([values.sum(), (values**2).sum()])
    dist.all_reduce(sums)
    return {name: (float(a), float(b)) for name, (a, b) in zip(names, sums.tolist(), strict=True)}


def train_cases(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Losses, gradient norms and final weights of each case, one after the other in the same processes."""
    results = []
    for case in sorted(cases, key=lambda case: str(case["layout"])):
        engine = start(case)
        curve = [step(engine, i, case["micro"]) for i in range(case["steps"])]
        weights = state(engine)
        scale = float(next(p for p, s in engine.inputs.shards if s.name == "log_scale").detach().float().sum())
        results.append(
            {
                "case": case,
                "loss": [x for x, _ in curve],
                "grad_norm": [x for _, x in curve],
                "weights": weights,
                "log_scale": scale,
                # ZeRO 3 has views of its own, which come and go.
                "misaligned": [
                    shard.name
                    for p, shard in engine.inputs.shards
                    if p.numel() >= 8 and case["zero_stage"] < 3 and p.data_ptr() % 16
                ],
            }
        )
        engine.close()
    return results
