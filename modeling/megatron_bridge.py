"""Everything that Megatron Core takes for granted and that does not hold here, in one place.

Written against megatron-core 0.16.1. It names CUDA devices in places where a CPU is meant to do as well: in its
pipeline schedules and point-to-point buffers (`device="cuda"`), in parameter allocation (`torch.cuda.current_device()`)
and in its random-number tracker. On a machine with CUDA nothing here is used.
`tests/modeling/test_megatron_bridge.py` fails loudly when an upgrade moves one of these places.
"""

from __future__ import annotations

import contextlib
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

# Megatron Core says at import, once a module, what it will not use (Transformer Engine, Apex): we chose the spec
# knowing that. The model is imported for the sake of its warnings alone.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import megatron.core.models.gpt  # noqa: F401
    import megatron.core.pipeline_parallel.p2p_communication as p2p_communication
    import megatron.core.pipeline_parallel.schedules as schedules
    import megatron.core.tensor_parallel.random as megatron_random

_MODULES_WITH_DEVICE_LITERALS = (schedules, p2p_communication)
_FACTORIES = ("empty", "zeros", "ones", "tensor", "full")


class _TorchOnCpu(types.ModuleType):
    """`torch`, with "cuda" in its tensor factories read as "cpu"; only for modules that spell the device out."""

    def __init__(self) -> None:
        super().__init__("torch")
        for name in _FACTORIES:
            setattr(self, name, _on_cpu(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def build(*args: Any, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return build


class CpuRandomTracker(megatron_random.CudaRNGStatesTracker):
    """Megatron Core's tracker of named generator states, over the CPU's generator."""

    def add(self, name: str, seed: int) -> None:
        self._is_initialized = True
        self.states_[name] = torch.Generator().manual_seed(seed).get_state()

    @contextlib.contextmanager
    def fork(self, name: str = "model-parallel-rng") -> Iterator[None]:
        outer = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(outer)


def prepare() -> None:
    """Make Megatron Core usable on this machine. Idempotent; nothing to do where CUDA is present."""
    if torch.cuda.is_available() or isinstance(schedules.torch, _TorchOnCpu):
        return
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment, return-value]
    torch.cuda.synchronize = lambda *_: None  # type: ignore[assignment]
    for module in _MODULES_WITH_DEVICE_LITERALS:
        module.torch = _TorchOnCpu()  # type: ignore[attr-defined]
    megatron_random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    megatron_random._CUDA_RNG_STATE_TRACKER = CpuRandomTracker()
    megatron_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = True


@contextlib.contextmanager
def on_meta_device() -> Iterator[None]:
    """Build modules without memory: Megatron Core asks `torch.cuda.current_device()` where to allocate."""
    prepare()
    current_device = torch.cuda.current_device
    torch.cuda.current_device = lambda: "meta"  # type: ignore[assignment, return-value]
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.cuda.current_device = current_device


def seed_dropout(seed: int, tensor_rank: int) -> None:
    """Set the two generator states that dropout draws from.

    Outside the tensor-parallel regions all ranks of a tensor-parallel group must draw the same mask (`seed`); inside
    them each must draw its own (the tracker's state, `seed` and `tensor_rank`).
    """
    if torch.cuda.is_available():
        megatron_random.initialize_rng_tracker()
    torch.manual_seed(seed)
    tracker = megatron_random.get_cuda_rng_tracker()
    tracker.reset()
    # Offset as in Megatron Core's model_parallel_cuda_manual_seed, so that the two kinds of states never coincide.
    tracker.add(megatron_random._MODEL_PARALLEL_RNG_TRACKER_NAME, seed + 2718 + tensor_rank)


def random_state() -> dict[str, Any]:
    """Everything that dropout draws from: the default generators, and the tracker's."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    state["tracker"] = megatron_random.get_cuda_rng_tracker().get_states()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Go back to what `random_state` returned: what is drawn from here on is drawn again."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
    # A copy of the table: the tracker replaces its entries as they are drawn from.
    megatron_random.get_cuda_rng_tracker().set_states(dict(state["tracker"]))
