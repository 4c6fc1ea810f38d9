"""From configuration to an engine; the process groups must have been started."""

from __future__ import annotations

from typing import Any

from modeling.execution import Execution
from modeling.registry import Family
from training.config import OptimizerConfig, ParallelConfig
from training.engine.base import Engine, EngineInputs


def start_engine(
    family: Family,
    model_config: Any,
    optimizer: OptimizerConfig,
    parallel: ParallelConfig,
    execution: Execution,
    micro_batch_size: int,
) -> Engine:
    """Build this rank's part of the model with its initial weights, and the engine around it.

    Raises RecipeError or ModelError for combinations that cannot run, or would train wrongly in silence.
    """
    optimizer.check()
    parallel.check_engine(execution.precision)
    implementation = family.implementation
    chunks = implementation.build(model_config, execution)
    shards = []
    for chunk in chunks:
        described = implementation.describe(chunk)
        shards += [(parameter, described[name]) for name, parameter in chunk.named_parameters()]
    inputs = EngineInputs(family, model_config, chunks, shards, optimizer, parallel, execution)
    if parallel.zero_stage == 0:
        from training.engine.reference import ReferenceEngine

        return ReferenceEngine(inputs)
    from training.engine.zero import ZeroEngine  # DeepSpeed takes seconds to import, and the reference does without

    return ZeroEngine(inputs, micro_batch_size)
