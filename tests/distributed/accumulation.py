"""Gradients of many identical micro-batches against the gradient of one."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

from tests.distributed import steps
from training.engine import deepspeed_bridge
from training.engine.base import Engine

MANY = 1024


def compare(cases: list[dict[str, Any]]) -> list[dict[str, float]]:
    """For each case: relative error of the whole gradient (stage 1) and of its norm, many micro-batches against one."""
    return [_compare(case) for case in cases]


def _compare(case: dict[str, Any]) -> dict[str, float]:
    with mock.patch.object(
        deepspeed_bridge, "config", _in_bf16 if case["bf16_accumulation"] else deepspeed_bridge.config
    ):
        one, one_norm = _gradient(case, 1)
        many, many_norm = _gradient(case, MANY)
    error = float((many - one).norm() / one.norm()) if case["zero_stage"] == 1 else 0.0
    return {"gradient": error, "norm": abs(many_norm - one_norm) / one_norm}


def _gradient(case: dict[str, Any], count: int) -> tuple[torch.Tensor, float]:
    engine = steps.start(case)
    tokens = steps.tokens_of_step(0, 1)
    engine.forward_backward([{"tokens": tokens}] * count)
    whole = torch.cat(list(_gradients(engine))) if case["zero_stage"] == 1 else torch.zeros(0)
    norm = engine.step(1e-3).grad_norm
    steps.stop(engine)
    return whole, norm


def _gradients(engine: Engine) -> Any:
    for parameter, _ in engine.inputs.shards:
        gradient = deepspeed_bridge.high_precision_gradient(engine.engine, parameter)  # type: ignore[attr-defined]
        assert gradient is not None
        yield gradient.detach().float().flatten().clone()


_whole_config = deepspeed_bridge.config


def _in_bf16(*arguments: Any) -> dict[str, Any]:
    """What `bf16.enabled` alone gives: gradients accumulate in bf16."""
    settings = _whole_config(*arguments)
    settings["bf16"] = {"enabled": True}
    del settings["data_types"], settings["communication_data_type"]
    return settings
