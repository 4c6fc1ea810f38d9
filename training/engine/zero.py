"""The engine over DeepSpeed ZeRO: optimizer state, and at stages 2 and 3 gradients and weights, divided over
data-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from modeling import groups
from training.engine import deepspeed_bridge as bridge
from training.engine.base import Engine, EngineInputs, StepResult, adamw, materialise
from training.engine.fragments import Fragment


class EngineAsModel:
    """What Megatron Core's schedules ask of a model, over a DeepSpeed engine whose hooks must see the forward pass."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.config = engine.module.config
        self.model_type = engine.module.model_type

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.engine(*args, **kwargs)

    def set_input_tensor(self, tensor: Any) -> None:
        self.engine.module.set_input_tensor(tensor)


class ZeroEngine(Engine):
    """ZeRO stages 1 to 3, fp32 or bf16 with fp32 masters and fp32 gradient accumulation."""

    def __init__(self, inputs: EngineInputs, micro_batch_size: int) -> None:
        super().__init__(inputs)
        chunks, parallel = inputs.chunks, inputs.parallel
        for parameter, shard in inputs.shards:
            if shard.tied_copy:
                parameter.ds_pipe_replicated = True  # type: ignore[attr-defined]  # else the norm counts it twice
        if parallel.zero_stage >= 2 and parallel.sequence:
            self._sum_in_backward()
        module = chunks[0] if len(chunks) == 1 else torch.nn.ModuleList(chunks)
        numel = sum(parameter.numel() for parameter, _ in inputs.shards if parameter.requires_grad)
        settings = bridge.config(inputs.optimizer, parallel, micro_batch_size, inputs.execution.precision, numel)
        self.engine = bridge.initialize(module, adamw(inputs), settings)
        # Stages 2 and 3 gather weights and divide gradients in hooks around forward; stage 1 needs none.
        self._callables = [EngineAsModel(self.engine)] if parallel.zero_stage >= 2 else chunks
        if inputs.execution.precision == "bf16":
            self._write_exact_masters()

    def _sum_in_backward(self) -> None:
        """Stages 2 and 3 divide a gradient as soon as it exists, so that norms' partial sums must be completed
        before that.
        """
        group = groups.tensor_group()

        def complete(gradient: torch.Tensor) -> torch.Tensor:
            whole = gradient.clone()
            torch.distributed.all_reduce(whole, group=group)
            return whole

        for parameter, _ in self.inputs.shards:
            if getattr(parameter, "sequence_parallel", False):
                parameter.register_hook(complete)

    def _write_exact_masters(self) -> None:
        """DeepSpeed takes its masters from the bf16 weights; initial values are known in fp32, so start from those."""
        seed = self.inputs.execution.seed
        for fragment in self.fragments():
            if fragment.exp_avg is None:
                continue  # a frozen weight has no master
            start = fragment.start
            values = fragment.shard.initial_values(seed, start, start + fragment.weight.numel(), fragment.weight.device)
            fragment.weight.copy_(values)

    def callables(self) -> list[Any]:
        return self._callables

    def step(self, learning_rate: float) -> StepResult:
        bridge.zero_missing_gradients(self.engine)
        if self.inputs.parallel.zero_stage == 1:
            self.complete_gradients(lambda p: bridge.high_precision_gradient(self.engine, p))
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        skipped_before = self.engine.skipped_steps
        self.engine.step()
        skipped = self.engine.skipped_steps > skipped_before
        if not skipped:
            self.keep_bounds()
            self.optimizer_steps += 1
        return StepResult(float(self.engine.get_global_grad_norm()), skipped)

    def fragments(self) -> Iterator[Fragment]:
        optimizer = bridge.base_optimizer(self.engine)
        parameters = [parameter for parameter, _ in self.inputs.shards if parameter.requires_grad]
        for parameter, start, flat, offset, length in bridge.runs(self.engine, parameters):
            state = materialise(optimizer, flat)
            weight, first, second = (
                t.data[offset : offset + length] for t in (flat, state["exp_avg"], state["exp_avg_sq"])
            )
            yield Fragment(self.shard_of[id(parameter)], start, weight, first, second)
        yield from self._frozen_fragments()

    def _frozen_fragments(self) -> Iterator[Fragment]:
        """What no optimizer holds: whole on every rank, or at stage 3 divided like all weights."""
        here = self.coordinates
        for parameter, shard in self.inputs.shards:
            if parameter.requires_grad:
                continue
            if self.inputs.parallel.zero_stage < 3:
                yield Fragment(shard, 0, parameter.data.view(-1), None, None, copies=here.data_size, copy=here.data)
                continue
            start, part = bridge.frozen_run(self.engine, parameter)
            if len(part):
                yield Fragment(shard, start, part, None, None)

    def publish(self) -> None:
        for state in bridge.base_optimizer(self.engine).state.values():
            state["step"].fill_(float(self.optimizer_steps))
        bridge.publish(self.engine)

    def close(self) -> None:
        self.engine.destroy()
