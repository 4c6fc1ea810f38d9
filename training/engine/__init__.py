"""The engine: one optimizer step of a model that is spread over ranks, and the pieces of its state that this rank
holds.

`base` has what all engines share: running the pipeline schedule and completing gradients that layouts split;
`coupled` is the gradient cache for losses that couple a batch, `reference` the plain
fp32 engine, `zero` the one over DeepSpeed, `deepspeed_bridge` everything that reaches into DeepSpeed, `fragments` what
a rank holds.
"""

from training.engine.base import Engine, StepResult
from training.engine.start import start_engine

__all__ = ["Engine", "StepResult", "start_engine"]
