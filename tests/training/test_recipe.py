"""Recipes: what is read, what is refused and with which sentence, and the way back to YAML."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import BadConfig
from modeling.errors import ModelError
from training.errors import RecipeError
from training.recipe import Recipe, check, dump_yaml, load_recipe, to_yaml

RECIPE = """
run: {name: small, directory: runs, seed: 7}
model: {family: gpt, num_layers: 4, hidden_size: 64, num_attention_heads: 4, sequence_length: 64}
data:
  mix: [{shards: shards/a, weight: 0.7}, {shards: shards/b, weight: 0.3}]
batch: {global_batch_size: 16, micro_batch_size: 2}
optimizer: {lr: 6.0e-4, betas: [0.9, 0.95], eps: 1e-8, warmup: 375M tokens, decay: 260B tokens}
training: {steps: 300B tokens}
cluster: {ranks_per_node: 2}
prepare: {output: shards}
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def refusal(path: Path, *overrides: str) -> str:
    """The one line that says what is wrong."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_numbers_in_every_notation_and_durations_are_read_and_defaults_fill_the_rest(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert (recipe.optimizer.lr, recipe.optimizer.eps, recipe.optimizer.betas) == (6.0e-4, 1e-8, (0.9, 0.95))
    assert isinstance(recipe.optimizer.eps, float) and isinstance(recipe.optimizer.betas, tuple)
    assert (recipe.optimizer.warmup, recipe.optimizer.decay, recipe.training.steps) == (
        "375M tokens",
        "260B tokens",
        "300B tokens",
    )
    assert [(s.shards, s.weight) for s in recipe.data.mix] == [("shards/a", 0.7), ("shards/b", 0.3)]
    assert recipe.training.log_every == 10 and recipe.parallel.zero_stage == 1


@pytest.mark.parametrize(
    ("overrides", "section", "name", "value"),
    [
        (["--optimizer.lr", "3e-4"], "optimizer", "lr", 3e-4),
        (["--optimizer.lr=3e-4"], "optimizer", "lr", 3e-4),
        (["--optimizer.betas", "[0.8, 0.9]"], "optimizer", "betas", (0.8, 0.9)),
        (["--optimizer.decay", "null"], "optimizer", "decay", None),
        (["--training.steps", "300 steps"], "training", "steps", 300),
        (["--training.steps", "0.5B tokens"], "training", "steps", "500M tokens"),
        (["--training.compile", "true"], "training", "compile", True),
        (["--training.sample_prompt", "def f(x): [1]"], "training", "sample_prompt", "def f(x): [1]"),
        (["--run.name", "123"], "run", "name", "123"),
        (["--run.seed", "1", "--run.seed", "2"], "run", "seed", 2),
    ],
)
def test_override_is_read_as_the_type_of_its_key(
    recipe_file: Path, overrides: list[str], section: str, name: str, value: object
) -> None:
    read = getattr(getattr(load_recipe(recipe_file, overrides), section), name)
    assert read == value and type(read) is type(value)


def test_overrides_reach_into_lists_and_absent_sections(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text("mix: [{shards: other}]\n")
    overrides = ["--data.mix.1.weight", "2", "--batch.ramp", "{start: 4, increment: 4, over: 1B tokens}"]
    recipe = load_recipe(recipe_file, overrides)
    assert [s.weight for s in recipe.data.mix] == [0.7, 2.0]
    assert recipe.batch.ramp is not None and recipe.batch.ramp.over == "1B tokens"
    other = load_recipe(recipe_file, ["--data", str(tmp_path / "mix.yaml"), "--data.prefetch", "5"])
    assert [s.shards for s in other.data.mix] == ["other"] and other.data.prefetch == 5


def test_preset_lies_beneath_the_keys_that_are_written(recipe_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "preset.yaml"
    path.write_text("model: {preset: gpt3-1.3b, dropout: 0.1}\nbatch: {global_batch_size: 8, micro_batch_size: 1}\n")
    model = load_recipe(path).model
    assert (model.num_layers, model.hidden_size, model.vocab_size, model.dropout) == (24, 2048, 50257, 0.1)
    assert load_recipe(path, ["--model.preset", "llama-160m"]).model.normalization == "rmsnorm"
    assert load_recipe(recipe_file, ["--model.preset", "gpt3-13b"]).model.num_layers == 4
    path.write_text("model: {preset: gpt3-1.3b, family: gpt}\nbatch: {global_batch_size: 8, micro_batch_size: 1}\n")
    assert load_recipe(path).model.num_layers == 24


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["--optimizer.warmpu", "3"], "optimizer.warmpu does not exist; did you mean optimizer.warmup?"),
        (["--optimizer.steps", "3"], "optimizer.steps does not exist; did you mean training.steps?"),
        (["--optimiser.lr", "3"], "optimiser.lr does not exist; did you mean optimizer.lr?"),
        (["--lr", "3"], "lr does not exist; did you mean optimizer.lr?"),
        (["--data.mix.0.wieght", "3"], "data.mix.0.wieght does not exist; did you mean data.mix.weight?"),
        (["--data.mix.2.weight", "3"], "data.mix.2.weight: 2 is no element of a list of 2"),
        (["--run.qqq", "3"], "run.qqq does not exist; run has directory, name, seed"),
        (["--optimizer.lr", "fast"], "optimizer.lr is fast; it must be a number"),
        (["--run.seed", "1.5"], "run.seed is '1.5'; it must be a whole number"),
        (["--run.seed", "null"], "run.seed is 'null'; it must be a whole number"),
        (["--optimizer.betas", "[0.9]"], "optimizer.betas is [0.9]; it must be a list of 2: a number, a number"),
        (["--optimizer.schedule", "cosin"], "optimizer.schedule is cosin; it must be one of cosine, linear, constant"),
        (["--training.stop_after", "soon"], "training.stop_after is soon; it must be a whole number or null"),
        (["--training.steps", "4B"], 'training.steps: "4B": say whether these are steps or tokens'),
        (["--optimizer.warmup", "a while"], 'optimizer.warmup: "a while" is no duration'),
        (["--batch.ramp.start", "2"], "batch.ramp.increment is missing; it must be a whole number"),
        (["--model.preset", "gpt4"], "model.preset 'gpt4' does not exist; there are clip-rn50"),
        (["--model.family", "gtp"], "model.family 'gtp' does not exist; there is clip, gpt"),
        (["--optimizer.betas", "[0.9,"], "the value of --optimizer.betas is not valid YAML in line 1"),
        (["--run.seed"], "--run.seed has no value"),
        (["--run.seed", "--run.name", "x"], "--run.seed has no value"),
        (["run.seed=3"], "'run.seed=3' is no override; write --section.key value"),
    ],
)
def test_wrong_override_is_refused_with_key_value_and_what_would_fit(
    recipe_file: Path, overrides: list[str], said: str
) -> None:
    assert said in refusal(recipe_file, *overrides)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optimiser: {lr: 1.0}", "optimiser does not exist; did you mean optimizer?"),
        ("batch: {global_batch_size: 8}", "batch.micro_batch_size is missing; it must be a whole number"),
        ("model: {}", "batch.global_batch_size is missing"),
        ("batch: 16", "batch is 16; it must be a mapping with global_batch_size"),
        ("batch: {global_batch_size: 8, micro_batch_size: true}", "batch.micro_batch_size is true; it must be a whole"),
        (
            "batch: {global_batch_size: 8, micro_batch_size: 1}\nparallel: {zero_stage: true}",
            "parallel.zero_stage is true; it must be one of 0, 1, 2, 3",
        ),
        ("run: {seed: null}", "run.seed is null; it must be a whole number"),
        ("run: {name: 123}", "run.name is 123; it must be text"),
        ("data: {mix: {shards: a}}", "data.mix is {shards: a}; it must be a list, each element a mapping with shards"),
        ("data: {mix: [{weight: 1}]}", "data.mix.0.shards is missing; it must be text"),
        ("data: {mix: [{shards: a, weight: much}]}", "data.mix.0.weight is much; it must be a number"),
        ("data: nowhere.yaml", "there is no file nowhere.yaml"),
        ("run: {seed: 1}\nrun: {seed: 2}", "is not valid YAML in line 2, column 1: run is written twice"),
        ("run: [", "is not valid YAML in line"),
        ("- run", "must hold sections such as `model:` and `data:`, but holds [run]"),
        ("", "must hold sections such as `model:` and `data:`, but holds nothing"),
        ("run: !!python/object/apply:os.getcwd []", "is not valid YAML in line 1"),
        (
            "model: {preset: gpt3-13b, family: clip}",
            "model.preset gpt3-13b is of the family gpt, but model.family is clip",
        ),
    ],
)
def test_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    assert said in refusal(path)


def test_missing_and_unreadable_sources_are_named(tmp_path: Path) -> None:
    assert f"there is no file {tmp_path}/none.yaml" in refusal(tmp_path / "none.yaml")
    assert f"{tmp_path} is no run's folder: it has no recipe.yaml" in refusal(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"run: {name: caf\xe9}")
    assert "it is not UTF-8 text" in refusal(tmp_path / "latin.yaml")


def test_resolved_recipe_in_a_runs_folder_loads_to_an_equal_one(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, ["--batch.ramp", "{start: 4, increment: 4, over: 4B tokens}"])
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(to_yaml(recipe))
    assert load_recipe(run) == recipe
    assert "max_skipped_steps: 10" in to_yaml(recipe), "a resolved recipe writes its defaults out"
    assert "cluster" not in to_yaml(recipe)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_way_through_yaml(text: str) -> None:
    document = {"training": {"sample_prompt": text, "list": [text, {text: text}]}}
    assert yaml.safe_load(dump_yaml(document)) == document


def checked(path: Path, world_size: int, *overrides: str) -> Recipe:
    recipe = load_recipe(path, overrides)
    check(recipe, world_size)
    return recipe


def test_recipe_that_fits_its_ranks_passes(recipe_file: Path) -> None:
    for world_size in (1, 2, 4, 8):
        checked(recipe_file, world_size)
    checked(recipe_file, 8, "--parallel", "{tensor: 2, pipeline: 2, sequence: true, virtual_pipeline: 2}")
    checked(recipe_file, 2, "--batch.ramp", "{start: 4, increment: 4, over: 4B tokens}")


@pytest.mark.parametrize(
    ("world_size", "overrides", "said"),
    [
        (3, "--parallel.tensor 2", "do not divide the 3 ranks of this run; use a multiple of 2 ranks"),
        (
            16,
            "",
            "batch.global_batch_size 16 is not divisible by 16 data-parallel ranks x batch.micro_batch_size 2 = 32",
        ),
        (3, "", "= 6; 12 or 18 would fit"),
        (
            2,
            "--batch.ramp {start:\\ 2,increment:\\ 2,over:\\ 4Btokens}",
            "batch.ramp's size 2 is not divisible by 2 data",
        ),
        (
            4,
            "--parallel.pipeline 4 --batch.global_batch_size 12 --batch.micro_batch_size 8",
            "12 is not divisible by 1 data-parallel ranks x batch.micro_batch_size 8 = 8; 8 or 16 would fit",
        ),
        (
            2,
            "--parallel.pipeline 2 --parallel.virtual_pipeline 2 --batch.global_batch_size 6",
            "x parallel.pipeline 2 (whole rounds of the interleaved schedule) = 4; 4 or 8 would fit",
        ),
        (3, "--parallel.tensor 3", "model.num_attention_heads 4 is not divisible by parallel.tensor 3"),
        (3, "--parallel.pipeline 3", "model.num_layers 4 is not divisible by parallel.pipeline 3"),
        (2, "--parallel.pipeline 2 --parallel.zero_stage 2", "parallel.zero_stage 2 divides gradients"),
        (1, "--parallel.zero_stage 0", "training.precision is bf16"),
        (1, "--optimizer.lr 0", "optimizer.lr is 0.0; it must be above 0"),
        (1, "--training.log_every 0", "training.log_every is 0"),
        (1, "--checkpoint.keep 0", "keep is 0"),
        (1, "--model.num_attention_heads 5", "model.hidden_size 64 is not divisible by model.num_attention_heads 5"),
        (
            1,
            "--optimizer.decay 100 --optimizer.warmup 200",
            "optimizer.warmup (200) is longer than optimizer.decay (100)",
        ),
        (1, "--optimizer.decay 1Mtokens --optimizer.warmup 2000", "(2000) is longer than optimizer.decay (1M tokens)"),
        (1, "--training.validate_every 5", "data.validation names no held-out shards"),
        (1, "--training.compile true --training.recompute selective", "training.recompute selective would cut"),
    ],
)
def test_impossible_combination_says_which_keys_disagree(
    recipe_file: Path, world_size: int, overrides: str, said: str
) -> None:
    words = [word.replace("\\", "").replace("_space_", " ") for word in overrides.replace("\\ ", "_space_").split()]
    with pytest.raises((RecipeError, ModelError, BadConfig)) as caught:
        checked(recipe_file, world_size, *words)
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_reading_a_recipe_imports_neither_torch_nor_ray(recipe_file: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from training.recipe import load_recipe, check; "
        "check(load_recipe(Path(sys.argv[1])), 2); "
        "heavy = {'torch', 'megatron', 'deepspeed', 'ray'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(recipe_file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
