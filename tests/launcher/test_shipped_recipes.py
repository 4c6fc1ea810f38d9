"""The recipes that ship: each reads, fits its own cluster, and says what the papers say."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.batching import BatchSchedule, Duration
from launcher.digits import write_strips
from launcher.job import Job, load_job
from launcher.sources import find_recipe, shipped_names

# Brown et al. 2020, table 2.1: batch size in tokens, learning rate. Samples are of 2,048 tokens.
TABLE_2_1 = {
    "gpt3-125m": (0.5e6, 6.0e-4),
    "gpt3-350m": (0.5e6, 3.0e-4),
    "gpt3-760m": (0.5e6, 2.5e-4),
    "gpt3-1.3b": (1e6, 2.0e-4),
    "gpt3-2.7b": (1e6, 1.6e-4),
    "gpt3-6.7b": (2e6, 1.2e-4),
    "gpt3-13b": (2e6, 1.0e-4),
    "gpt3-175b": (3.2e6, 0.6e-4),
}

# Radford et al. 2021, tables 18 (beta 2 and epsilon), 19 and 20 (learning rates).
TABLES_18_TO_20 = {
    "clip-vit-b-32": (5e-4, 0.98, 1e-6),
    "clip-vit-b-16": (5e-4, 0.98, 1e-6),
    "clip-vit-l-14": (4e-4, 0.98, 1e-6),
    "clip-rn50": (5e-4, 0.999, 1e-8),
}


def job(name: str, *overrides: str) -> Job:
    """The recipe as it would be started: what needs several nodes joins a cluster."""
    read = load_job(find_recipe(name), overrides)
    if read.cluster.nodes > 1:
        read.cluster.address = "head:6379"
    return read


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_recipe_fits_its_own_cluster_and_is_named_after_its_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_strips(Path("digits"), training=1, held_out=1)  # the classes of demo-clip
    read = job(name)
    read.check()
    assert read.recipe.run.name == name
    assert read.recipe.data.mix and read.recipe.data.validation and read.recipe.training.validate_every


def test_gpt3_models_are_all_there() -> None:
    assert {name for name in shipped_names() if name.startswith("gpt3-")} == set(TABLE_2_1)


@pytest.mark.parametrize("name", TABLE_2_1)
def test_gpt3_recipe_has_the_papers_hyperparameters(name: str) -> None:
    recipe = job(name).recipe
    tokens, lr = TABLE_2_1[name]
    batch = recipe.batch.global_batch_size * recipe.model.sequence_length
    assert batch == pytest.approx(tokens, rel=0.05) and recipe.optimizer.lr == lr
    assert recipe.model.sequence_length == 2048 and recipe.model.vocab_size == 50257
    assert (recipe.optimizer.betas, recipe.optimizer.eps) == ((0.9, 0.95), 1e-8)
    assert (recipe.optimizer.weight_decay, recipe.optimizer.clip_grad_norm) == (0.1, 1.0)
    assert (recipe.optimizer.schedule, recipe.optimizer.min_lr_ratio) == ("cosine", 0.1)
    assert Duration.parse(recipe.optimizer.warmup).tokens == 375_000_000
    assert Duration.parse(recipe.optimizer.decay or "").tokens == 260_000_000_000
    assert Duration.parse(recipe.training.steps).tokens == 300_000_000_000


@pytest.mark.parametrize("name", TABLE_2_1)
def test_gpt3_batch_ramp_starts_at_32k_tokens_and_ends_within_4_to_12_billion(name: str) -> None:
    recipe = job(name).recipe
    schedule = BatchSchedule(recipe.batch, recipe.model.sequence_length)
    assert schedule.size(0) * 2048 == 32_768
    full = next(step for step in range(10**6) if schedule.size(step) == recipe.batch.global_batch_size)
    assert 4e9 <= schedule.start(full) * 2048 <= 12.01e9


def test_175b_can_be_interleaved_with_the_ramp_that_its_comment_gives() -> None:
    layout = ["--parallel.virtual_pipeline", "6"]
    ramp = ["--batch.ramp", "{start: 128, increment: 128, over: 12B tokens}"]
    job("gpt3-175b", *layout, *ramp).check()
    with pytest.raises(ValueError, match=r"batch.ramp's size 16 is not divisible by .* x parallel.pipeline 16"):
        job("gpt3-175b", *layout).check()


@pytest.mark.parametrize("name", TABLES_18_TO_20)
def test_clip_recipe_has_the_papers_hyperparameters(name: str) -> None:
    recipe = job(name).recipe
    lr, beta, epsilon = TABLES_18_TO_20[name]
    assert (recipe.optimizer.lr, recipe.optimizer.betas, recipe.optimizer.eps) == (lr, (0.9, beta), epsilon)
    assert (recipe.optimizer.weight_decay, recipe.optimizer.warmup, recipe.optimizer.schedule) == (0.2, 2000, "cosine")
    assert recipe.batch.global_batch_size == 32_768 and recipe.model.initial_temperature == 0.07
    assert recipe.training.steps == 32 * 400_000_000 // 32_768 and recipe.model.max_scale == 100.0
