"""The engine over DeepSpeed without memory: it is built and runs its schedule on meta tensors, as a fake rank."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from modeling.execution import Execution
from modeling.registry import family
from training.engine import start_engine
from training.engine.zero import ZeroEngine
from training.recipe import Recipe


@contextlib.contextmanager
def engine_on_meta(recipe: Recipe, execution: Execution) -> Iterator[ZeroEngine]:
    """The engine of the recipe on the fake rank that stands, within `on_meta_device()`."""
    from deepspeed.accelerator import get_accelerator

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RANK", dist.get_rank()), ("LOCAL_RANK", 0), ("WORLD_SIZE", dist.get_world_size())):
            patch.setenv(name, str(value))
        for name in ("device_name", "current_device_name"):  # where DeepSpeed moves a module to
            patch.setattr(type(get_accelerator()), name, lambda *_: "meta")
        chosen, micro = family(recipe.model.family), recipe.batch.micro_batch_size
        engine = start_engine(chosen, recipe.model, recipe.optimizer, recipe.parallel, execution, micro)
        assert isinstance(engine, ZeroEngine)
        try:
            yield engine
        finally:
            engine.close()


def weight_bytes(engine: ZeroEngine) -> int:
    """What forward and backward use, with the padding of the groups' flat tensors."""
    return sum(flat.nbytes for flat in engine.engine.optimizer.bf16_groups_flat)


def gradient_bytes(engine: ZeroEngine) -> int:
    """Where gradients accumulate in fp32."""
    return sum(flat.nbytes for flat in engine.engine.optimizer.fp32_groups_gradients_flat)


def optimizer_bytes(engine: ZeroEngine) -> int:
    """Masters and Adam's two moments of this rank's part."""
    parts = [flat for group in engine.engine.optimizer.optimizer.param_groups for flat in group["params"]]
    return 3 * sum(flat.nbytes for flat in parts)
