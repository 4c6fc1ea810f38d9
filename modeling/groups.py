"""The process groups of a layout, and this rank's coordinates in it.

Ranks are ordered tensor (fastest), data, pipeline (slowest), as Megatron Core orders them, so that a tensor-parallel
group is a run of neighbouring ranks and stays inside a node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from modeling import gloo, megatron_bridge
from modeling.layout import Layout

megatron_bridge.prepare()

# After the bridge, which also keeps their warnings quiet.
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func


@dataclass(frozen=True)
class Coordinates:
    """Where one rank sits in the layout."""

    tensor: int
    pipeline: int
    data: int
    data_size: int


def start_groups(layout: Layout) -> Coordinates:
    """Create Megatron Core's process groups over the default group and return this rank's coordinates."""
    layout.check()
    gloo.share_device()
    layout.data_parallel(dist.get_world_size())
    virtual = layout.virtual_pipeline if layout.virtual_pipeline > 1 else None
    parallel_state.initialize_model_parallel(
        layout.tensor, layout.pipeline, virtual_pipeline_model_parallel_size=virtual, create_gloo_process_groups=False
    )
    return coordinates()


def stop_groups() -> None:
    """Close the process groups, so that another layout can be started in the same process."""
    world = dist.group.WORLD
    # Megatron Core forgets its groups without closing them, and each keeps threads and sockets while it is open.
    open_groups = {id(group): group for group in _groups_of_megatron()}
    parallel_state.destroy_model_parallel()
    for group in open_groups.values():
        if group is not world:
            dist.destroy_process_group(group)


def _groups_of_megatron() -> list[dist.ProcessGroup]:
    found = []
    for value in vars(parallel_state).values():
        members = value if isinstance(value, list) else [value]
        found += [member for member in members if isinstance(member, dist.ProcessGroup)]
    return found


def coordinates() -> Coordinates:
    """This rank's place; the groups must have been started."""
    return Coordinates(
        tensor=parallel_state.get_tensor_model_parallel_rank(),
        pipeline=parallel_state.get_pipeline_model_parallel_rank(),
        data=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
    )


def pipeline_schedule() -> Callable[..., list[dict[str, Any]]]:
    """Megatron Core's schedule for these groups: plain accumulation, 1F1B, or interleaved (Narayanan et al. 2021)."""
    return get_forward_backward_func()


def tensor_group() -> dist.ProcessGroup:
    return parallel_state.get_tensor_model_parallel_group()


def data_group() -> dist.ProcessGroup:
    return parallel_state.get_data_parallel_group()


def model_group() -> dist.ProcessGroup:
    """The ranks that hold one replica together: tensor x pipeline."""
    return parallel_state.get_model_parallel_group()


def embedding_group() -> dist.ProcessGroup | None:
    """First and last stage, which share a tied embedding; None on the stages between."""
    return parallel_state.get_embedding_group(check_initialized=False) if _in_embedding_group() else None


def _in_embedding_group() -> bool:
    return parallel_state.is_rank_in_embedding_group(ignore_virtual=True)


def is_last_stage() -> bool:
    """Whether this rank computes the loss."""
    return parallel_state.is_pipeline_last_stage(ignore_virtual=True)


def device() -> torch.device:
    """Where this rank's tensors live: its GPU, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
