"""Optimizer steps and whole runs that keep documents apart. Runs on every rank of a launch."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from data_pipeline.stream import Batch
from modeling import groups
from modeling.gpt import objective
from tests.distributed import runs, steps
from training.batches import split
from training.engine import Engine

EOD = 5
STEPS = 3
MODELS = {"banded": {"attention": "alternating", "attention_band": 4}}


def tokens_of_step(step: int) -> torch.Tensor:
    """The global batch of a step: documents of any length, and in the second sample one after another."""
    tokens = steps.tokens_of_step(step)
    generator = torch.Generator().manual_seed(step)
    tokens[torch.rand(tokens.shape, generator=generator) < 0.15] = EOD
    tokens[1, 3:9] = EOD
    return tokens


def step(engine: Engine, tokens: torch.Tensor, micro_batch_size: int, masks: bool) -> tuple[float, float]:
    """One optimizer step: (mean loss of what is predicted, gradient norm), the same numbers on every rank."""
    here = groups.coordinates()
    mine = Batch(tokens.chunk(here.data_size)[here.data].numpy(), np.zeros(0, np.int64))
    figures = engine.forward_backward(split(mine, micro_batch_size, engine.device, EOD if masks else None))
    total = torch.zeros(2, dtype=torch.float64)
    if groups.is_last_stage() and here.tensor == 0:
        for one in figures:
            counts = one.get("sample_tokens", torch.ones_like(one["sample_losses"]))
            total += torch.stack([(one["sample_losses"].double() * counts).sum(), counts.double().sum()])
    dist.all_reduce(total)
    return float(total[0] / total[1]), engine.step(2e-3).grad_norm


def train_cases(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Losses and gradient norms of each case, as `steps.train_cases`; `plant` is a loss with another divisor."""
    results = []
    with mock.patch.dict(steps.MODELS, MODELS):
        for case in sorted(cases, key=lambda case: str(case["layout"])):
            engine = steps.start({"precision": "fp32", **case})
            with mock.patch.object(objective, "loss", mean_of_predicted) if case.get("plant") else nullcontext():
                curve = [
                    step(engine, tokens_of_step(i), case.get("micro", 1), case.get("masks", True)) for i in range(STEPS)
                ]
            steps.stop(engine)
            del engine
            results.append({"case": case, "loss": [x for x, _ in curve], "grad_norm": [x for _, x in curve]})
    return results


def mean_of_predicted(token_losses: torch.Tensor, predicted: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """The divisor that suggests itself, and makes a token's weight depend on its micro-batch."""
    mean, figures = _loss(token_losses, predicted)
    return mean * predicted.numel() / predicted.sum(), figures


_loss = objective.loss


def train_all(argument: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Both in one launch: `cases` as above, and `runs` as `runs.train_runs` takes them."""
    curves = train_cases(argument["cases"])
    groups.stop_groups()
    return {"curves": curves, "finished": runs.train_runs(argument["runs"])}
