"""Everything that reaches into DeepSpeed, in one place. Written against deepspeed 0.19.8.

`tests/training/test_deepspeed_bridge.py` fails loudly when an upgrade moves one of the names used here.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed tries devices one after the other, with warnings

# DeepSpeed calls two collectives by names that torch has renamed, and torch says so at every call.
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)

import deepspeed
from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from modeling.groups import parallel_state
from training.config import OptimizerConfig, ParallelConfig
from training.footprint import REDUCE_BUCKET

# On a CPU DeepSpeed would compile a shared-memory collective at the first start, for inference that never happens here.
# (`deepspeed.comm.torch` as an attribute is torch itself: the module must be asked for by name.)
importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]

# Where a flat run of a parameter lives: (parameter, first element, the group's flat fp32 tensor, offset in it, length).
Run = tuple[torch.nn.Parameter, int, torch.Tensor, int, int]


class ModelParallelUnit:
    """What DeepSpeed asks an `mpu`, answered by Megatron Core; two of the names have been dropped there."""

    def __getattr__(self, name: str) -> Any:
        return getattr(parallel_state, name)

    def get_model_parallel_rank(self) -> int:
        return torch.distributed.get_rank(parallel_state.get_model_parallel_group())

    def get_model_parallel_world_size(self) -> int:
        return torch.distributed.get_world_size(parallel_state.get_model_parallel_group())


def config(
    optimizer: OptimizerConfig, parallel: ParallelConfig, micro_batch_size: int, precision: str, numel: int
) -> dict[str, Any]:
    """DeepSpeed's configuration for `numel` trained parameters on this rank; the reasons stand beside the keys that are
    silent traps.
    """
    zero: dict[str, Any] = {"stage": parallel.zero_stage, "overlap_comm": False}
    # Buckets are allocated whole: of a small model's gradients, too, 2 GB of fp32.
    zero["reduce_bucket_size"] = max(1, min(REDUCE_BUCKET, numel))
    if parallel.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        # The schedule owns accumulation and divides the loss by the number of micro-batches itself; any other number
        # here
        # divides gradients a second time, which Adam and clipping hide.
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": optimizer.clip_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's AdamW is one of the untested
        "zero_force_ds_cpu_optimizer": False,  # offloaded, too, torch's own is used: nothing to compile
        "steps_per_print": 10**9,
    }
    if precision == "bf16":
        # bf16 alone accumulates gradients in bf16. These keys together give fp32 accumulation and fp32 reduction;
        # without `immediate_grad_update` pipelines crash, without `communication_data_type` gradients are 2e-3 off.
        settings["bf16"] = {"enabled": True, "immediate_grad_update": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
        settings["communication_data_type"] = "fp32"
    return settings


def initialize(module: torch.nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> Any:
    """DeepSpeed's engine around `module`, quietly, with its overflow check on in fp32 as well."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # BF16_Optimizer reports memory with a garbage collection each time, whatever the log level: 1.2 s of the start.
    bf16_optimizer.see_memory_usage = lambda *_, **__: None
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(backend, verbose=False)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, mpu=ModelParallelUnit(), config=settings)
    if isinstance(engine.optimizer, DeepSpeedZeroOptimizer):
        # In fp32 nothing would stop a step with a norm that is not finite. The norm itself is checked when the flag is
        # on; the
        # element-wise pass that the flag also starts would only find the same thing again.
        engine.optimizer.check_grad_overflow = True
        engine.optimizer.check_overflow = lambda *_, **__: None
    if isinstance(engine.optimizer, BF16_Optimizer):
        engine.allreduce_and_copy = partial(_reduce_in_place, engine)
        engine.optimizer._update_hp_grad = partial(_accumulate, engine.optimizer)
        engine.optimizer.clear_hp_grads = partial(_forget_gradients, engine.optimizer)
    return engine


def _accumulate(optimizer: Any, parameter: torch.nn.Parameter, group: int, index: int, clear_lp_grads: bool) -> None:
    """Add a bf16 gradient to its fp32 sum. DeepSpeed zeroes all sums twice a step and adds to the zeros; here the first
    micro-batch of a step writes, which is the same sum.
    """
    if parameter.grad is None:
        return
    total = optimizer.fp32_groups_gradients[group][index]
    with torch.no_grad():
        if optimizer.fp32_groups_has_gradients[group][index]:
            total.add_(parameter.grad.view(total.shape))
        else:
            total.copy_(parameter.grad.view(total.shape))
    optimizer.fp32_groups_has_gradients[group][index] = True
    parameter._hp_grad = total  # type: ignore[attr-defined]


def _forget_gradients(optimizer: Any) -> None:
    """The sums are of a step that is over: the next one writes, or zeroes in `zero_missing_gradients`."""
    for flags in optimizer.fp32_groups_has_gradients:
        flags[:] = [False] * len(flags)


def zero_missing_gradients(engine: Any) -> None:
    """Before a step: the sums of parameters that took no part in it are zero, not what the last step left there."""
    if isinstance(engine.optimizer, BF16_Optimizer):
        both = zip(engine.optimizer.fp32_groups_gradients, engine.optimizer.fp32_groups_has_gradients, strict=True)
        for gradients, flags in both:
            for gradient, present in zip(gradients, flags, strict=True):
                if not present:
                    gradient.zero_()


def _reduce_in_place(
    engine: Any, bucket: list[torch.Tensor], group: dist.ProcessGroup, world_size: float | None = None
) -> None:
    """Average BF16_Optimizer's gradients over `group`. They are flat already, one tensor a parameter group; DeepSpeed's
    own way copies them into one more flat tensor, and back.
    """
    size = dist.get_world_size(group) if world_size is None else world_size
    if size == 1:
        return
    for gradients in bucket:
        if gradients.dtype != engine.communication_data_type:
            raise AssertionError(f"gradients are {gradients.dtype}, to be reduced in {engine.communication_data_type}")
        dist.all_reduce(gradients, group=group)
        gradients.mul_(1.0 / size)


def base_optimizer(engine: Any) -> torch.optim.AdamW:
    """The AdamW beneath DeepSpeed's wrapper, whose state is keyed by flat fp32 tensors."""
    return engine.optimizer.optimizer


def high_precision_gradient(engine: Any, parameter: torch.nn.Parameter) -> torch.Tensor | None:
    """Where a parameter's gradient accumulates until the step, stages 1 (bf16 and fp32)."""
    if isinstance(engine.optimizer, BF16_Optimizer):
        gradient = getattr(parameter, "_hp_grad", None)
        return None if gradient is None else gradient.view(parameter.shape)
    if engine.optimizer.use_grad_accum_attribute:  # bf16 with an offloaded optimizer: hooks move fp32 sums there
        return getattr(parameter, "grad_accum", None)
    return parameter.grad


def runs(engine: Any, parameters: list[torch.nn.Parameter]) -> Iterator[Run]:
    """This rank's partition of the optimizer's state, as runs of local parameters."""
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        for parameter in parameters:
            group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = optimizer._get_param_partition_rank(parameter) * length
            # The last partitions of a small parameter are padding, or nothing but padding.
            valid = max(0, min(length, getattr(parameter, "ds_numel") - start))
            if valid:
                yield parameter, start, optimizer.fp32_partitioned_groups_flat[group], offset, valid
        return
    flats = (
        optimizer.fp32_groups_flat_partition
        if isinstance(optimizer, BF16_Optimizer)
        else optimizer.single_partition_of_fp32_groups
    )
    for parameter in parameters:
        mapping = getattr(parameter, "_hp_mapping")
        if mapping is not None:
            here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
            yield parameter, here.start, flats[mapping.param_group_index], there.start, here.numel


def frozen_run(engine: Any, parameter: torch.nn.Parameter) -> tuple[int, torch.Tensor]:
    """Stage 3: the first element and the values of this rank's part of a parameter that no optimizer holds."""
    partition = getattr(parameter, "ds_tensor")
    length = partition.numel()
    start = engine.optimizer._get_param_partition_rank(parameter) * length
    valid = max(0, min(length, getattr(parameter, "ds_numel") - start))
    return start, partition.data[:valid]


def publish(engine: Any) -> None:
    """Write the fp32 masters back into the weights that forward uses, on every rank."""
    optimizer = engine.optimizer
    if not isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer._lazy_init_hp_params_optimizer_state()
        optimizer.update_lp_params()
        return
    optimizer._partition_all_parameters()
    for group in range(len(optimizer.fp16_groups)):
        optimizer._reassign_or_swap_out_partitioned_parameters(group)
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
