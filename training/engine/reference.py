"""The plain engine: fp32, torch's AdamW, no DeepSpeed. What every other path is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from modeling import groups
from training.engine.base import Engine, EngineInputs, StepResult, adamw, all_reduce_together, materialise
from training.engine.fragments import Fragment


class ReferenceEngine(Engine):
    """Gradients averaged over data-parallel ranks by all-reduce; every rank steps everything it holds."""

    def __init__(self, inputs: EngineInputs) -> None:
        super().__init__(inputs)
        self.optimizer = adamw(inputs)

    def callables(self) -> list[Any]:
        return self.chunks

    def step(self, learning_rate: float) -> StepResult:
        self.complete_gradients(lambda p: p.grad)
        gradients = [p.grad for p, _ in self.inputs.shards if p.grad is not None]
        size = self.coordinates.data_size
        if size > 1:
            all_reduce_together(gradients, groups.data_group())
            for gradient in gradients:
                gradient.div_(size)
        norm = float(self._gradient_norm())
        finite = norm < float("inf")  # false for nan, too
        if finite:
            clip = self.inputs.optimizer.clip_grad_norm
            if clip > 0 and norm > clip:
                for gradient in gradients:
                    gradient.mul_(clip / (norm + 1e-6))
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
            self.keep_bounds()
            self.optimizer_steps += 1
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(norm, skipped=not finite)

    def _gradient_norm(self) -> torch.Tensor:
        """Norm over the model's replica, each element counted once."""
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        for parameter, shard in self.inputs.shards:
            if parameter.grad is not None and shard.replica == 0 and not shard.tied_copy:
                total += parameter.grad.norm() ** 2
        dist.all_reduce(total, group=groups.model_group())
        return total.sqrt()

    def fragments(self) -> Iterator[Fragment]:
        here = self.coordinates
        for parameter, shard in self.inputs.shards:
            if not parameter.requires_grad:
                flat = parameter.data.view(-1)
                yield Fragment(shard, 0, flat, None, None, copies=here.data_size, copy=here.data)
                continue
            state = materialise(self.optimizer, parameter)
            weight, first, second = (t.view(-1) for t in (parameter.data, state["exp_avg"], state["exp_avg_sq"]))
            yield Fragment(shard, 0, weight, first, second, copies=here.data_size, copy=here.data)

    def close(self) -> None:
        """Nothing outlives this engine."""

    def publish(self) -> None:
        for state in self.optimizer.state.values():
            state["step"].fill_(float(self.optimizer_steps))
