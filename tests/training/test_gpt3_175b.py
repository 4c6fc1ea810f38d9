"""GPT-3 175B as its recipe lays it out, on 1,024 ranks: one rank's share of each stage, with fake process groups and
meta tensors. Shapes, collectives and schedules are the real ones; no number is computed and nothing is sent.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import launcher
from modeling.execution import Execution
from modeling.groups import coordinates
from modeling.layout import Layout
from modeling.megatron_bridge import on_meta_device, seed_dropout
from modeling.registry import family
from tests.modeling.worlds import fake_rank, meta_chunks
from tests.training.meta_engines import engine_on_meta, gradient_bytes, optimizer_bytes, weight_bytes
from training.footprint import state_bytes
from training.recipe import Recipe, check, load_recipe

WORLD_SIZE = 1024
INTERLEAVED = ["--parallel.virtual_pipeline", "6", "--batch.ramp", "{start: 128, increment: 128, over: 12B tokens}"]


def recipe_of(*overrides: str) -> Recipe:
    recipe = load_recipe(Path(launcher.__file__).parent / "recipes" / "gpt3-175b.yaml", overrides)
    check(recipe, WORLD_SIZE)
    return recipe


def layout_of(recipe: Recipe) -> Layout:
    parallel = recipe.parallel
    return Layout(parallel.tensor, parallel.pipeline, parallel.virtual_pipeline, parallel.sequence)


def execution_of(recipe: Recipe) -> Execution:
    return Execution(layout_of(recipe), recipe.training.precision, recipe.training.recompute)


def rank_of(recipe: Recipe, stage: int) -> int:
    """A rank of the stage, in each stage another one of its 64."""
    size = WORLD_SIZE // recipe.parallel.pipeline
    return stage * size + (11 * stage + 3) % size


def test_recipe_is_for_tensor_8_pipeline_16_data_8() -> None:
    parallel = recipe_of().parallel
    assert (parallel.tensor, parallel.pipeline, parallel.data_parallel(WORLD_SIZE)) == (8, 16, 8)
    assert parallel.sequence and parallel.zero_stage == 1


@pytest.mark.parametrize("overrides", [[], INTERLEAVED], ids=["1F1B", "interleaved"])
def test_a_rank_of_each_stage_builds_what_the_planner_says(overrides: list[str]) -> None:
    recipe = recipe_of(*overrides)
    layout, config = layout_of(recipe), recipe.model
    whole: Counter[str] = Counter()
    for stage in range(layout.pipeline):
        with fake_rank(layout, rank_of(recipe, stage), WORLD_SIZE):
            assert coordinates().pipeline == stage
            chunks, shards = meta_chunks("gpt", config, execution_of(recipe))
        assert len(chunks) == layout.virtual_pipeline
        assert all(parameter.is_meta and parameter.dtype == torch.bfloat16 for parameter, _ in shards)
        planned = family("gpt").footprint(config, layout, stage, recipe.training.recompute).parameters
        held = Counter((parameter.numel(), shard.decay) for parameter, shard in shards)
        assert Counter((one.numel, one.decay) for one in planned) == held
        for _, shard in shards:
            whole[shard.name] = max(whole[shard.name], torch.Size(shard.global_shape).numel())
    assert whole.total() == family("gpt").parameter_count(config)  # the stages together are the model


@pytest.mark.parametrize(("overrides", "stages"), [([], [0, 7, 15]), (INTERLEAVED, [15])], ids=["1F1B", "interleaved"])
def test_the_engine_of_a_stage_is_as_large_as_planned_and_runs_its_schedule(
    overrides: list[str], stages: list[int]
) -> None:
    recipe = recipe_of(*overrides)
    recipe.batch = replace(recipe.batch, ramp=None)
    layout, config = layout_of(recipe), recipe.model
    micro_batches = layout.pipeline if overrides else 2  # as few as the schedule takes
    length = config.sequence_length
    for stage in stages:
        with fake_rank(layout, rank_of(recipe, stage), WORLD_SIZE), on_meta_device():
            seed_dropout(recipe.run.seed, coordinates().tensor)
            with engine_on_meta(recipe, execution_of(recipe)) as engine:
                footprint = family("gpt").footprint(config, layout, stage, recipe.training.recompute)
                planned = state_bytes(footprint, recipe.parallel, "bf16", replicas=8)
                assert weight_bytes(engine) == planned.weights
                assert gradient_bytes(engine) == planned.gradients
                assert optimizer_bytes(engine) == planned.optimizer
                tokens = [torch.empty(1, length + 1, dtype=torch.int64) for _ in range(micro_batches)]
                with torch.device("cpu"):  # what the schedule and recomputation count stays countable
                    figures = engine.forward_backward([{"tokens": sample} for sample in tokens])
                assert len(figures) == (micro_batches if stage == layout.pipeline - 1 else 0)
                assert all(one["sample_losses"].shape == (1,) for one in figures)
                assert all(all(group) for group in engine.engine.optimizer.fp32_groups_has_gradients)
