"""Looks into DeepSpeed's optimizers, for the test of the bridge; runs in a process of its own."""

from __future__ import annotations

from typing import Any

import torch

from tests.distributed import steps
from training.engine import deepspeed_bridge
from training.engine.zero import ZeroEngine

_NAMES = {
    "BF16_Optimizer": [
        "fp32_groups_flat_partition",
        "fp32_groups_gradients",
        "fp32_groups_has_gradients",
        "_update_hp_grad",
        "clear_hp_grads",
        "update_lp_params",
        "_lazy_init_hp_params_optimizer_state",
    ],
    "DeepSpeedZeroOptimizer": [
        "single_partition_of_fp32_groups",
        "update_lp_params",
        "_lazy_init_hp_params_optimizer_state",
        "check_grad_overflow",
        "check_overflow",
        "use_grad_accum_attribute",
    ],
    "DeepSpeedZeroOptimizer_Stage3": [
        "grad_position",
        "get_param_id",
        "_get_param_partition_rank",
        "fp32_partitioned_groups_flat",
        "fp16_groups",
        "_partition_all_parameters",
        "_reassign_or_swap_out_partitioned_parameters",
        "persistent_parameters",
    ],
}


def inspect(_: Any) -> dict[str, dict[str, Any]]:
    """For each configuration: the optimizer's class, missing names, gradients not found, and what a NaN does."""
    found = {}
    for stage in (1, 2, 3):
        for precision in ("fp32", "bf16"):
            for offload in (False, True) if stage == 1 else (False,):
                case = {"model": "tied", "layout": {}, "zero_stage": stage, "precision": precision, "offload": offload}
                name = f"stage {stage} {precision}" + (" offload" if offload else "")
                found[name] = _look(case)
    return found


def _look(case: dict[str, Any]) -> dict[str, Any]:
    engine = steps.start(case)
    assert isinstance(engine, ZeroEngine)
    kind = type(engine.engine.optimizer).__name__
    missing = [name for name in _NAMES[kind] if not hasattr(engine.engine.optimizer, name)]
    tokens = steps.tokens_of_step(0)
    engine.forward_backward([{"tokens": micro} for micro in tokens.split(1)])
    without = 0
    if case["zero_stage"] == 1:
        gradients = [deepspeed_bridge.high_precision_gradient(engine.engine, p) for p, _ in engine.inputs.shards]
        without = sum(gradient is None for gradient in gradients)
    engine.step(1e-3)
    # A step that nothing took part in has no gradients, whatever the one before has left in the sums.
    deepspeed_bridge.zero_missing_gradients(engine.engine)
    stale = any(bool(flat.any()) for flat in getattr(engine.engine.optimizer, "fp32_groups_gradients_flat", []))
    before = torch.cat([fragment.weight.clone() for fragment in engine.fragments()])
    parameter = engine.inputs.shards[0][0]
    hook = parameter.register_hook(lambda gradient: gradient * float("nan"))
    engine.forward_backward([{"tokens": micro} for micro in tokens.split(1)])
    skipped = engine.step(1e-3).skipped
    hook.remove()
    after = torch.cat([fragment.weight.clone() for fragment in engine.fragments()])
    steps.stop(engine)
    changed = not torch.equal(before, after)
    return {
        "class": kind,
        "missing": missing,
        "without_gradient": without,
        "skipped": skipped,
        "changed": changed,
        "stale": stale,
    }
