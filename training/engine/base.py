"""What every engine does: run the pipeline schedule over micro-batches, and complete gradients that the layout has
split.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from modeling import groups, megatron_bridge
from modeling.execution import Execution
from modeling.registry import Family
from modeling.sharding import Shard
from training.checkpoint import Piece
from training.config import OptimizerConfig, ParallelConfig
from training.engine.coupled import coupled_backward, micro_batch_seed
from training.engine.fragments import Fragment

_ALIGNED = 8  # elements of bf16 in 16 bytes

MicroBatch = dict[str, torch.Tensor]
Figures = dict[str, torch.Tensor]


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step did."""

    grad_norm: float
    """Global norm before clipping; inf or nan when the step was skipped."""
    skipped: bool
    """The norm was not finite, so that no rank changed anything."""


@dataclass(frozen=True)
class EngineInputs:
    """What an engine is built from."""

    family: Family
    model_config: Any
    chunks: list[Any]
    shards: list[tuple[torch.nn.Parameter, Shard]]
    optimizer: OptimizerConfig
    parallel: ParallelConfig
    execution: Execution


class Engine(ABC):
    """One rank's share of a model and its optimizer."""

    def __init__(self, inputs: EngineInputs) -> None:
        self.inputs = inputs
        self.family = inputs.family
        self.chunks = inputs.chunks
        self.shard_of = {id(parameter): shard for parameter, shard in inputs.shards}
        self._single_numbers: dict[str, torch.Tensor] | None = None
        self._bounded = [(parameter, shard) for parameter, shard in inputs.shards if shard.maximum is not None]
        self.coordinates = groups.coordinates()
        self.device = groups.device()
        self._schedule = groups.pipeline_schedule()
        self.optimizer_steps = 0
        """Updates applied: Adam's own counter, skipped steps left out."""
        self.dropout_seed: int | None = None
        """Seeds the micro-batches of a step where the family couples a batch; null: whatever the generators give."""

    # -- running the model ------------------------------------------------------------------------------------

    def forward_backward(self, micro_batches: Sequence[MicroBatch]) -> list[Figures]:
        """Accumulate the gradient of the mean loss over `micro_batches`; the figures of each, on the last stage."""
        self._set_training(True)
        if self.family.couples_batch:
            return self._coupled(micro_batches)
        return self._run(micro_batches, forward_only=False)

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> list[Figures]:
        """Run without gradients or dropout; the figures of each micro-batch, on the last stage."""
        self._set_training(False)
        with torch.no_grad():
            return self._run(micro_batches, forward_only=True)

    def shared_scalars(self) -> list[torch.Tensor]:
        """The family's shared scalars as the optimizer keeps them: a bf16 weight is off by up to 1 in 256, a loss that
        multiplies by it need not be. Collective over the data-parallel ranks, but at stage 0.
        """
        names = self.family.implementation.shared_parameters
        own = {shard.name: parameter for parameter, shard in self.inputs.shards if shard.name in names}
        if self.inputs.parallel.zero_stage == 0:
            return [own[name].detach().reshape(()).clone() for name in names if name in own]
        values = torch.zeros(len(names), dtype=torch.float32, device=self.device)
        masters = self._masters()
        for place, name in enumerate(names):
            if name in masters:
                values[place] = masters[name].to(self.device)
        dist.all_reduce(values, group=groups.data_group())
        return [value for name, value in zip(names, values, strict=True) if name in own]

    def _masters(self) -> dict[str, torch.Tensor]:
        """This rank's masters of single numbers, `[1]` each, by global name: views of the optimizer's own storage."""
        if self._single_numbers is None:
            found = {f.shard.name: f.weight for f in self.fragments() if f.shard.numel == 1 and f.weight.numel()}
            self._single_numbers = found
        return self._single_numbers

    def outputs(self, *arguments: Any) -> Any:
        """What the model gives for `arguments`, without gradients or dropout. Of models that are not in stages."""
        self._set_training(False)
        (model,) = self.callables()
        with torch.no_grad():
            return model(*arguments)

    def _coupled(self, micro_batches: Sequence[MicroBatch]) -> list[Figures]:
        (model,) = self.callables()
        here, group = self.coordinates, groups.data_group()
        before = 0
        if self.dropout_seed is not None:
            counts = torch.zeros(here.data_size, dtype=torch.int64, device=self.device)
            counts[here.data] = len(micro_batches)
            dist.all_reduce(counts, group=group)
            before = int(counts[: here.data].sum())

        def seed(number: int) -> None:
            if self.dropout_seed is not None:
                megatron_bridge.seed_dropout(micro_batch_seed(self.dropout_seed, before + number), here.tensor)

        return coupled_backward(
            self.family,
            self.inputs.model_config,
            model,
            micro_batches,
            group,
            shared=self.shared_scalars(),
            device=self.device,
            before=seed,
        )

    def _run(self, micro_batches: Sequence[MicroBatch], *, forward_only: bool) -> list[Figures]:
        models = self.callables()
        iterators = [iter(micro_batches) for _ in models]
        tokens = next(iter(micro_batches[0].values()))
        figures = self._schedule(
            forward_step_func=self._forward_step,
            data_iterator=iterators if len(models) > 1 else iterators[0],
            model=models if len(models) > 1 else models[0],
            num_microbatches=len(micro_batches),
            seq_length=self.inputs.model_config.sequence_length,
            micro_batch_size=tokens.shape[0],
            forward_only=forward_only,
        )
        return list(figures)

    def _forward_step(self, batches: Iterator[MicroBatch], model: Any) -> tuple[torch.Tensor, Callable[..., Any]]:
        return self.family.implementation.forward_step(next(batches), model)

    def _set_training(self, training: bool) -> None:
        for chunk in self.chunks:
            if chunk.training != training:
                chunk.train(training)

    @abstractmethod
    def callables(self) -> list[Any]:
        """What the schedule calls: the chunks, or a wrapper that must see their forward pass."""

    # -- completing gradients -----------------------------------------------------------------------------------

    def complete_gradients(self, gradient_of: Callable[[torch.nn.Parameter], torch.Tensor | None]) -> None:
        """Sum what the layout has split, once a step.

        Under sequence parallelism a norm's gradient covers a part of the sequence (sum over the tensor-parallel group,
        Korthikanti
        et al. 2022); a tied embedding has one gradient from the first stage and one from the last (sum over both).
        """
        self._sum_sequence_parallel(gradient_of)
        self._sum_tied_embedding(gradient_of)

    def _sum_sequence_parallel(self, gradient_of: Callable[[torch.nn.Parameter], torch.Tensor | None]) -> None:
        if not self.inputs.parallel.sequence:
            return
        # Marked by the norms, and by Megatron Core on the biases that are added to a part of the sequence.
        marked = [(shard.name, gradient_of(p)) for p, shard in self.inputs.shards if _is_partial(p)]
        missing = [name for name, gradient in marked if gradient is None]
        if missing:
            raise AssertionError(f"no gradient to complete for {missing[0]}: it took no part in this step")
        all_reduce_together([gradient for _, gradient in marked if gradient is not None], groups.tensor_group())

    def _sum_tied_embedding(self, gradient_of: Callable[[torch.nn.Parameter], torch.Tensor | None]) -> None:
        group = groups.embedding_group()
        if group is None or dist.get_world_size(group) == 1:
            return
        for parameter, shard in self.inputs.shards:
            if getattr(parameter, "shared_embedding", False) or shard.tied_copy:
                gradient = gradient_of(parameter)
                if gradient is None:
                    raise AssertionError(f"no gradient for the tied {shard.name}: it took no part in this step")
                dist.all_reduce(gradient, group=group)

    # -- the step -------------------------------------------------------------------------------------------------

    @abstractmethod
    def step(self, learning_rate: float) -> StepResult:
        """Complete, reduce and clip the gradients, update the weights and clear the gradients."""

    def keep_bounds(self) -> None:
        """After an update: pull parameters that have a `Shard.maximum` back to it, masters and weights alike."""
        if not self._bounded:
            return
        with torch.no_grad():
            masters = self._masters()
            for parameter, shard in self._bounded:
                if shard.name in masters:
                    masters[shard.name].clamp_(max=shard.maximum)
                # Rounding is monotonic, so that this is the rounded master.
                parameter.clamp_(max=shard.maximum)
                partition = getattr(parameter, "ds_tensor", None)  # ZeRO 3 also keeps this rank's part of it
                if partition is not None:
                    partition.clamp_(max=shard.maximum)

    # -- state ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def fragments(self) -> Iterator[Fragment]:
        """Everything of the optimizer's state that this rank holds; the tensors are live."""

    @abstractmethod
    def publish(self) -> None:
        """After fragments were written to: make weights, and Adam's counter, follow them."""

    def pieces(self) -> Iterator[tuple[Piece, torch.Tensor]]:
        """What this rank writes to a checkpoint; over all ranks each element of the state occurs exactly once."""
        for fragment in self.fragments():
            low, high = fragment.owned()
            if high > low:
                for kind, tensor in fragment.tensors():
                    yield fragment.piece(kind, low, high), tensor[low:high].float()  # what is frozen may be in bf16

    def load(self, read: Callable[[Piece], torch.Tensor], optimizer_steps: int) -> None:
        """Take over state from a checkpoint's reader, whatever layout wrote it."""
        with torch.no_grad():
            for fragment in self.fragments():
                for kind, tensor in fragment.tensors():
                    if fragment.real:
                        tensor[: fragment.real].copy_(read(fragment.piece(kind, 0, fragment.real)))
        self.optimizer_steps = optimizer_steps
        self.publish()

    def parameter_norm_squared(self) -> torch.Tensor:
        """This rank's part of the squared norm of all weights (a scalar); the sum over ranks is the whole."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for fragment in self.fragments():
            low, high = fragment.owned()
            if high > low:
                total += fragment.weight[low:high].detach().norm().double().to(self.device) ** 2
        return total

    @abstractmethod
    def close(self) -> None:
        """Release what outlives a Python object."""


def _is_partial(parameter: torch.nn.Parameter) -> bool:
    return getattr(parameter, "sequence_parallel", False)


def all_reduce_together(tensors: list[torch.Tensor], group: dist.ProcessGroup) -> None:
    """One all-reduce for many small tensors."""
    if not tensors:
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def parameter_groups(inputs: EngineInputs) -> list[dict[str, Any]]:
    """Matrices with weight decay, everything else without; what is frozen is in no group."""
    # A group becomes one flat tensor: a scalar before a matrix would leave it off the 16 bytes that fast kernels want.
    ordered = sorted(inputs.shards, key=lambda one: one[0].numel() % _ALIGNED != 0)
    decayed = [p for p, shard in ordered if shard.decay and p.requires_grad]
    plain = [p for p, shard in ordered if not shard.decay and p.requires_grad]
    decay = inputs.optimizer.weight_decay
    both = [{"params": decayed, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in both if group["params"]]


def adamw(inputs: EngineInputs) -> torch.optim.AdamW:
    """torch's fused AdamW over the two groups."""
    optimizer = inputs.optimizer
    return torch.optim.AdamW(
        parameter_groups(inputs), lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps, fused=True
    )


def materialise(optimizer: torch.optim.AdamW, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """Adam's state of `parameter`, created as zeros if the first step has not been taken."""
    state: dict[str, torch.Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, requires_grad=False)
        state["exp_avg_sq"] = torch.zeros_like(parameter, requires_grad=False)
    return state
