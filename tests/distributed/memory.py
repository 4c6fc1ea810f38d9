"""What a rank's memory is really filled with during whole training steps. Runs on every rank of a launch.

On a CPU the profiler sees each piece of memory that torch's allocator gives and takes back, from before the engine
exists: weights, flat buffers and inputs are in. On a GPU the allocator keeps the sum itself.
"""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function

from modeling import attention, cross_entropy, groups, megatron_bridge
from modeling.execution import Execution
from modeling.layout import Layout
from modeling.registry import family
from tests.distributed.steps import _start_groups
from training.engine import Engine, start_engine
from training.recipe import Recipe, parse_recipe

SECTIONS = ("first step", "forward and backward", "optimizer step")
"""The first step makes the optimizer's state; the others are those of the second, which is looked at."""


def measure_documents(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each recipe, on this rank: its pipeline stage, bytes between steps and at the peak, and when that comes."""
    if torch.cuda.is_available():
        _meet_on_gpus()
    else:
        _count_in_all_threads()
    gc.freeze()  # what has been imported is no garbage, and takes long to look through
    _measure(parse_recipe(documents[0]))  # what is made once a process, such as a random generator's state
    return [_measure(parse_recipe(document)) for document in documents]


def _meet_on_gpus() -> None:
    dist.destroy_process_group()  # the launch's, over gloo
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")


def _count_in_all_threads() -> None:
    """The allocator counts in threads that are not profiled as well: a collective's gives back what it was given."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    ctypes.c_bool.in_dll(library, "FLAGS_caffe2_report_cpu_memory_usage").value = True


def _measure(recipe: Recipe) -> dict[str, Any]:
    parallel = recipe.parallel
    layout = Layout(parallel.tensor, parallel.pipeline, parallel.virtual_pipeline, parallel.sequence)
    here = _start_groups(layout)
    megatron_bridge.seed_dropout(1, here.tensor)
    cross_entropy._free_buffers.clear()
    attention._kept_band_mask.cache_clear()
    gc.collect()
    found = _on_gpu(recipe, layout) if torch.cuda.is_available() else _on_cpu(recipe, layout)
    gc.collect()
    return {"stage": here.pipeline, "rank": dist.get_rank(), **found}


def _start(recipe: Recipe, layout: Layout) -> Engine:
    training = recipe.training
    execution = Execution(layout, training.precision, training.recompute, training.compile)
    chosen = family(recipe.model.family)
    return start_engine(
        chosen, recipe.model, recipe.optimizer, recipe.parallel, execution, recipe.batch.micro_batch_size
    )


def _micro_batches(recipe: Recipe) -> list[dict[str, torch.Tensor]]:
    """A step's micro-batches of this rank, as training.batches makes them."""
    here, device, model = groups.coordinates(), groups.device(), recipe.model
    count = recipe.batch.global_batch_size // here.data_size
    if model.family == "clip":
        arrays = {
            "images": torch.randint(0, 256, (count, 3, model.image_size, model.image_size), dtype=torch.uint8),
            "tokens": torch.randint(0, model.vocabulary, (count, model.context_length)),
        }
    else:
        arrays = {"tokens": torch.randint(0, model.vocabulary, (count, model.sequence_length + 1))}
        if recipe.data.document_masks:
            arrays["documents"] = torch.randint(0, 2, arrays["tokens"].shape).cumsum(1)
    parts = [array.to(device).split(recipe.batch.micro_batch_size) for array in arrays.values()]
    return [dict(zip(arrays, tensors, strict=True)) for tensors in zip(*parts, strict=True)]


def _on_cpu(recipe: Recipe, layout: Layout) -> dict[str, Any]:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        with record_function(SECTIONS[0]):
            engine = _start(recipe, layout)
            micro_batches = _micro_batches(recipe)
            engine.forward_backward(micro_batches)
            engine.step(1e-3)
            gc.collect()
        with record_function(SECTIONS[1]):
            engine.forward_backward(micro_batches)
        with record_function(SECTIONS[2]):
            engine.step(1e-3)
    engine.close()
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    return _peaks(seen.profiler.kineto_results.experimental_event_tree())


def _peaks(tree: list[Any]) -> dict[str, Any]:
    """Bytes between steps, and the largest of each section that is looked at.

    The allocator's own total is taken: what another thread gives back has no event of its own.
    """
    totals: list[tuple[int, int, int]] = []
    bounds: dict[str, tuple[int, int]] = {}
    events = list(tree)
    while events:
        event = events.pop()
        events += event.children
        if event.tag == _EventType.Allocation:
            seen = event.extra_fields
            totals.append((event.start_time_ns, seen.total_allocated, seen.alloc_size))
        elif event.name in SECTIONS:
            bounds[event.name] = event.start_time_ns, event.end_time_ns
    totals.sort()
    before = totals[0][1] - totals[0][2]
    inside = {
        name: [total - before for when, total, _ in totals if low <= when <= high]
        for name, (low, high) in bounds.items()
    }
    return {"between": inside[SECTIONS[0]][-1], **{name: max(inside[name]) for name in SECTIONS[1:]}}


def _on_gpu(recipe: Recipe, layout: Layout) -> dict[str, Any]:
    before = torch.cuda.memory_allocated()
    engine = _start(recipe, layout)
    micro_batches = _micro_batches(recipe)
    engine.forward_backward(micro_batches)
    engine.step(1e-3)
    gc.collect()
    found = {"between": torch.cuda.memory_allocated() - before}
    for name in SECTIONS[1:]:
        torch.cuda.reset_peak_memory_stats()
        if name == SECTIONS[1]:
            engine.forward_backward(micro_batches)
        else:
            engine.step(1e-3)
        found[name] = torch.cuda.max_memory_allocated() - before
    engine.close()
    return found
