"""What the engine's tensors really take on a rank, and where it really sits. Runs on every rank of a launch."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist

SENT: Counter[tuple[int, ...]] = Counter()
"""Bytes that this rank has sent in rings to the members of each group, single numbers left out."""


def _counted(name: str, tensor: str, halves: int) -> None:
    """Note what a collective sends: its whole tensor is the argument `tensor`; a sum is two halves."""
    collective: Callable[..., Any] = getattr(dist, name)
    signature = inspect.signature(collective)

    def counting(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        ranks = tuple(dist.get_process_group_ranks(given.get("group") or dist.group.WORLD))
        if given[tensor].numel() > SMALL:
            SENT[ranks] += halves * (len(ranks) - 1) * given[tensor].nbytes // len(ranks)
        return collective(*args, **kwargs)

    setattr(dist, name, counting)


SMALL = 64
"""Elements: losses, norms, flags and the loss's sums over the vocabulary are no larger here."""
# Before Megatron Core and DeepSpeed are imported, which keep the functions that they find.
_counted("all_reduce", "tensor", 2)
_counted("all_gather_into_tensor", "output_tensor", 1)
_counted("reduce_scatter_tensor", "input", 1)

_isend = dist.isend


def _counting_isend(tensor: torch.Tensor, dst: int, *args: Any, **kwargs: Any) -> Any:
    if tensor.numel() > SMALL:
        SENT[(dst,)] += tensor.nbytes
    return _isend(tensor, dst, *args, **kwargs)


dist.isend = _counting_isend

from modeling import groups
from tests.distributed import steps


def measure_cases(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each case: this rank's coordinates, and the bytes of weights, gradients and optimizer after a step."""
    found = []
    for case in cases:
        engine = steps.start(case)
        here = groups.coordinates()
        steps.step(engine, steps.tokens_of_step(0))  # the first one also sets up
        SENT.clear()
        mine = steps.tokens_of_step(0).chunk(here.data_size)[here.data]
        engine.forward_backward([{"tokens": micro} for micro in mine.split(steps.MICRO_BATCH)])
        gradients = nbytes(gradients_of(engine))
        engine.step(1e-3)
        sent = {" ".join(map(str, ranks)): count for ranks, count in SENT.items()}
        found.append(
            {
                "rank": dist.get_rank(),
                "place": [here.tensor, here.pipeline, here.data],
                "sent": sent,
                "weights": nbytes(weights_of(engine)),
                "gradients": gradients,
                "optimizer": nbytes(state_of(engine)),
            }
        )
        steps.stop(engine)
    return found


def weights_of(engine: Any) -> Iterable[torch.Tensor]:
    """What forward and backward use: the parameters, and at ZeRO 3 this rank's parts of them."""
    for parameter, _ in engine.inputs.shards:
        yield parameter.data
        if hasattr(parameter, "ds_tensor"):
            yield parameter.ds_tensor


def gradients_of(engine: Any) -> Iterable[torch.Tensor]:
    """Where gradients lie between the last micro-batch and the step."""
    for parameter, _ in engine.inputs.shards:
        yield from (t for t in (parameter.grad, getattr(parameter, "grad_accum", None)) if t is not None)
    optimizer = getattr(getattr(engine, "engine", None), "optimizer", None)
    yield from getattr(optimizer, "fp32_groups_gradients_flat", [])
    for parts in getattr(optimizer, "averaged_gradients", {}).values():
        yield from [parts] if isinstance(parts, torch.Tensor) else parts or []
    for parts in getattr(optimizer, "all_grad_tensors", {}).values():
        yield from parts or []
    buffer = getattr(optimizer, "grad_partitions_flat_buffer", None)
    if buffer is not None:
        yield buffer


def state_of(engine: Any) -> Iterable[torch.Tensor]:
    """Adam's moments, and the fp32 masters where they are not the weights themselves."""
    wrapper = getattr(engine, "engine", None)
    adam = engine.optimizer if wrapper is None else wrapper.optimizer.optimizer
    for state in adam.state.values():
        yield from (state["exp_avg"], state["exp_avg_sq"])
    if wrapper is not None:
        for group in adam.param_groups:
            yield from group["params"]
        yield from getattr(wrapper.optimizer, "fp32_partitioned_groups_flat", [])


def nbytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the memory behind tensors, each piece of memory once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}.values())
