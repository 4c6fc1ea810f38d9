"""What Megatron Core takes for granted stands where the bridge expects it; an upgrade that moves it is red here."""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import inspect
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.pipeline_parallel import p2p_communication, schedules
from megatron.core.tensor_parallel import random as megatron_random

from modeling import megatron_bridge
from modeling.gpt import network
from tests.modeling.worlds import GPT2_LIKE, build, loss_and_gradients, sample

needs_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is bridged where CUDA is present")


def source(module: types.ModuleType) -> ast.Module:
    path = inspect.getsourcefile(module)
    assert path
    return ast.parse(Path(path).read_text())


def test_megatron_core_is_the_series_the_bridge_was_written_against() -> None:
    version = importlib.metadata.version("megatron-core")
    assert version.startswith("0.16."), f"megatron-core {version}: read megatron_bridge.py again, then change this line"


def device_literals(tree: ast.Module) -> list[str]:
    """The called name before each literal "cuda..." that is an argument."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
            if ast.unparse(node.func).startswith("torch.") and any(
                isinstance(v, ast.Constant) and str(v.value).startswith("cuda") for v in values
            ):
                found.append(ast.unparse(node.func))
    return sorted(found)


def test_device_literals_are_those_that_are_bridged() -> None:
    # autocast is only entered with enable_autocast, which we leave off.
    assert device_literals(source(schedules)) == ["torch.autocast", *["torch.zeros"] * 3]
    assert device_literals(source(p2p_communication)) == []
    assert "zeros" in megatron_bridge._FACTORIES
    assert {schedules, p2p_communication} == set(megatron_bridge._MODULES_WITH_DEVICE_LITERALS)


@pytest.mark.parametrize("module", [schedules, p2p_communication])
def test_cuda_functions_in_the_schedules_are_those_that_are_bridged(module: types.ModuleType) -> None:
    names = {ast.unparse(node) for node in ast.walk(source(module)) if isinstance(node, ast.Attribute)}
    used = {name for name in names if name.startswith("torch.cuda.") and name.count(".") == 2}
    # nvtx ranges are only pushed when asked for; streams and events only where CUDA graphs are captured.
    assert used <= {
        "torch.cuda.current_device",
        "torch.cuda.synchronize",
        "torch.cuda.nvtx",
        "torch.cuda.current_stream",
    }, used


def test_random_states_pass_through_the_functions_that_are_replaced() -> None:
    tree = source(megatron_random)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {"_get_cuda_rng_state", "_set_cuda_rng_state", "get_cuda_rng_tracker"} <= set(functions)
    assert "_get_cuda_rng_state(" in ast.unparse(functions["_get_all_rng_states"])
    assert "_set_cuda_rng_state(" in ast.unparse(functions["_set_all_rng_states"])
    assert "_CUDA_RNG_STATE_TRACKER" in ast.unparse(functions["get_cuda_rng_tracker"])
    fork = inspect.signature(megatron_random.CudaRNGStatesTracker.fork).parameters["name"].default
    assert fork == megatron_random._MODEL_PARALLEL_RNG_TRACKER_NAME
    assert inspect.signature(megatron_bridge.CpuRandomTracker.fork).parameters["name"].default == fork


def test_the_model_still_calls_what_we_override() -> None:
    base = source(inspect.getmodule(network.GPTModel) or schedules)
    (gpt,) = [node for node in base.body if isinstance(node, ast.ClassDef) and node.name == "GPTModel"]
    methods = {node.name: ast.unparse(node) for node in gpt.body if isinstance(node, ast.FunctionDef)}
    assert "self.setup_embeddings_and_output_layer()" in methods["__init__"]
    assert "self._postprocess(" in methods["forward"] and "inference_context=inference_context" in methods["forward"]


@needs_cpu
@pytest.mark.usefixtures("single_process")
def test_megatrons_schedule_runs_on_the_cpu() -> None:
    model = build(GPT2_LIKE)
    expected, gradients = loss_and_gradients(model, sample(GPT2_LIKE))
    model.zero_grad()
    results = schedules.get_forward_backward_func()(
        forward_step_func=lambda batches, chunk: network.forward_step(next(batches), chunk),
        data_iterator=iter([{"tokens": sample(GPT2_LIKE)}] * 2),
        model=[model],
        num_microbatches=2,
        seq_length=16,
        micro_batch_size=2,
        forward_only=False,
    )
    assert len(results) == 2 and all(result["sample_losses"].mean() == pytest.approx(expected) for result in results)
    for name, parameter in model.named_parameters():
        # Each of the two equal micro-batches counts half.
        torch.testing.assert_close(parameter.grad, gradients[name])


@needs_cpu
def test_the_tracker_draws_apart_and_goes_on_where_it_stopped() -> None:
    megatron_bridge.prepare()
    megatron_bridge.seed_dropout(3, tensor_rank=1)
    tracker = megatron_random.get_cuda_rng_tracker()
    outside = torch.get_rng_state()
    with tracker.fork():
        first = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), outside)
    with tracker.fork():
        second = torch.rand(4)
    assert not torch.equal(first, second)
    states = tracker.get_states()
    with contextlib.suppress(ZeroDivisionError), tracker.fork():
        torch.rand(1 // 0)
    assert torch.equal(torch.get_rng_state(), outside)
    tracker.set_states(states)
    with tracker.fork():
        third = torch.rand(4)
    megatron_bridge.seed_dropout(3, tensor_rank=1)
    with tracker.fork():
        assert torch.equal(torch.cat([first, second, third]), torch.rand(12))


def states_of(seed: int, tensor_rank: int) -> tuple[list[float], list[float]]:
    megatron_bridge.seed_dropout(seed, tensor_rank)
    replicated = torch.rand(4).tolist()
    with megatron_random.get_cuda_rng_tracker().fork():
        return replicated, torch.rand(4).tolist()


@needs_cpu
def test_replicated_draws_agree_over_tensor_ranks_and_divided_ones_differ() -> None:
    drawn = [states_of(7, rank) for rank in range(4)]
    assert len({str(replicated) for replicated, _ in drawn}) == 1
    assert len({str(divided) for _, divided in drawn} | {str(drawn[0][0])}) == 5
    assert states_of(8, 0)[0] != drawn[0][0]


@needs_cpu
def test_the_meta_device_is_left_even_after_an_error() -> None:
    megatron_bridge.prepare()
    current_device: Any = torch.cuda.current_device
    with contextlib.suppress(KeyError), megatron_bridge.on_meta_device():
        assert torch.cuda.current_device() == "meta" and torch.empty(1).is_meta  # type: ignore[comparison-overlap]
        raise KeyError
    assert torch.cuda.current_device is current_device and not torch.empty(1).is_meta
