"""The errors that layouts invite, planted on purpose; each must be visible in losses or gradient norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from tests.distributed import steps
from training.engine.base import Engine
from training.engine.zero import ZeroEngine


def train_with_errors(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As `steps.train_cases`, each case with its `plant`."""
    results = []
    for case in cases:
        with _PLANTS[case["plant"]]():
            results += steps.train_cases([case])
    return results


def _nothing(*_: Any) -> None:
    """Instead of a sum that must happen."""


@contextmanager
def _norms_not_summed() -> Iterator[None]:
    """Stages 0 and 1 sum once a step, stages 2 and 3 in backward: neither does."""
    with (
        mock.patch.object(Engine, "_sum_sequence_parallel", _nothing),
        mock.patch.object(ZeroEngine, "_sum_in_backward", _nothing),
    ):
        yield


@contextmanager
def _tied_not_summed() -> Iterator[None]:
    with mock.patch.object(Engine, "_sum_tied_embedding", _nothing):
        yield


@contextmanager
def _divided_twice() -> Iterator[None]:
    """The schedule divides by the number of micro-batches; the engine does so once more."""
    complete = Engine.complete_gradients

    def divide(self: Engine, gradient_of: Callable[[torch.nn.Parameter], torch.Tensor | None]) -> None:
        complete(self, gradient_of)
        for parameter, _ in self.inputs.shards:
            gradient = gradient_of(parameter)
            if gradient is not None:
                gradient.div_(steps.GLOBAL_BATCH // steps.MICRO_BATCH)

    with mock.patch.object(Engine, "complete_gradients", divide):
        yield


_PLANTS = {
    "norm gradients not summed under sequence parallelism": _norms_not_summed,
    "tied embedding gradients not summed": _tied_not_summed,
    "gradients divided twice": _divided_twice,
}
