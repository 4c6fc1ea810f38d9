"""A run that stops and resumes is the run that never stopped: bit for bit on its layout, within rounding on another.

The launches are in an order in which checkpoints travel: four ranks, then two, then one.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.prepare import prepare
from data_pipeline.recipe import CorpusConfig, PrepareConfig, TokenizerConfig
from tests.distributed.launch import run
from training.checkpoint import Checkpoint, candidates

STEPS, STOP = 10, 4

RECIPE = """
run: {name: test, seed: 7}
model: {family: gpt, num_layers: 4, hidden_size: 32, num_attention_heads: 4, sequence_length: 32}
data:
  mix: [{shards: SHARDS/words, weight: 1.0}]
  validation: [{shards: SHARDS/words-validation}]
batch: {global_batch_size: 8, micro_batch_size: 2}
optimizer: {lr: 2.0e-3, warmup: 3}
parallel: {zero_stage: 1}
training: {steps: 10, precision: fp32, log_every: 1, validation_samples: 8}
checkpoint: {every: 5, keep: 5}
"""
LLAMA = [
    "--model.tie_embeddings=false",
    "--model.positions=rotary",
    "--model.normalization=rmsnorm",
    "--model.activation=swiglu",
    "--model.num_query_groups=2",
    "--model.biases=false",
    "--model.ffn_hidden_size=96",
]
BF16 = ["--training.precision=bf16", "--model.dropout=0.1"]  # dropout, so that its generators are part of the promise


def words(number: int) -> str:
    """A document of a few hundred words that differs from all others."""
    return (
        " ".join(f"word{(number * 37 + i * i) % 211} and {(number + i) % 13}" for i in range(80)) + f" end {number}.\n"
    )


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "words.jsonl").write_text("".join(json.dumps({"text": words(i)}) + "\n" for i in range(240)))
    config = PrepareConfig(
        output=str(folder / "shards"),
        corpora=[CorpusConfig(name="words", sources=[str(folder / "words.jsonl")], stages=[])],
        sequence_length=32,
        tokenizer=TokenizerConfig(type="char", vocab_size=320),
        validation_fraction=0.1,
        held_out_overlap=1.0,
    )
    prepare(config, lambda line: None)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("SHARDS", str(folder / "shards")))
    return path


@dataclass
class Runs:
    """The folders of runs, and the specifications of one launch."""

    recipe: Path
    base: Path
    planned: list[dict[str, Any]] = field(default_factory=list)

    def plan(self, name: str, *overrides: str) -> Path:
        self.planned.append({"recipe": str(self.recipe), "folder": str(self.base / name), "overrides": list(overrides)})
        return self.base / name

    def twice(self, name: str, *overrides: str) -> None:
        """One run that never stops, and one that stops after STOP steps and goes on."""
        self.plan(f"{name}-straight", *overrides)
        self.plan(f"{name}-resumed", *overrides, f"--training.stop_after={STOP}")
        self.plan(f"{name}-resumed", *overrides)

    def resume_elsewhere(self, source: str, name: str, *overrides: str) -> None:
        """Continue a copy of what `source` had saved when it stopped."""
        folder = self.base / name
        folder.mkdir()
        shutil.copytree(self.base / source / "checkpoints", folder / "checkpoints")
        self.plan(name, *overrides)

    def launch(self, world_size: int) -> None:
        planned, self.planned = self.planned, []
        finished = run("tests.distributed.runs:train_runs", world_size, planned, deadline=280)
        assert finished == [[True] * len(planned)] * world_size


MODELS: dict[str, list[str]] = {"gpt": [], "llama": LLAMA}


@pytest.fixture(scope="module")
def runs(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    made = Runs(recipe, tmp_path_factory.mktemp("runs"))
    early = f"--training.stop_after={STOP}"
    made.twice("pp2-dp2-bf16", *BF16, "--parallel.pipeline=2")
    for model, shape in MODELS.items():
        made.plan(f"{model}-tp2-dp2", *shape, "--parallel.tensor=2", early)
    made.launch(4)
    made.twice("dp2-bf16", *BF16)
    made.twice("pp2-fp32", "--parallel.pipeline=2")
    made.twice("pp2-vpp2-fp32", "--parallel.pipeline=2", "--parallel.virtual_pipeline=2")
    made.twice("tp2-sp-bf16", *BF16, "--parallel.tensor=2", "--parallel.sequence=true")
    made.twice("zero3-bf16", *BF16, "--parallel.zero_stage=3")
    made.twice("offload-bf16", *BF16, "--parallel.zero_stage=2", "--parallel.offload_optimizer=true")
    for model, shape in MODELS.items():
        made.plan(f"{model}-zero3", *shape, "--parallel.zero_stage=3", early)
    made.launch(2)
    for model, shape in MODELS.items():
        for source in ("tp2-dp2", "zero3"):
            made.resume_elsewhere(f"{model}-{source}", f"{model}-{source}-on-pp2", *shape, "--parallel.pipeline=2")
            made.resume_elsewhere(f"{model}-{source}", f"{model}-{source}-on-zero3", *shape, "--parallel.zero_stage=3")
    made.launch(2)
    made.twice("one-bf16", *BF16)
    for model, shape in MODELS.items():
        made.plan(f"{model}-straight", *shape, "--parallel.zero_stage=0")
        for source in ("tp2-dp2", "zero3"):
            made.resume_elsewhere(f"{model}-{source}", f"{model}-{source}-on-one", *shape)
    made.launch(1)
    return made


def curve(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len({line["step"] for line in lines}) == len(lines), "a step was recorded twice"
    return {line["step"]: line["loss"] for line in lines}


def state(folder: Path) -> dict[tuple[str, str], torch.Tensor]:
    """Every tensor of the newest checkpoint."""
    checkpoint = Checkpoint(candidates(folder / "checkpoints")[0])
    assert checkpoint.step == STEPS
    checkpoint.verify()
    return {
        (name, kind): checkpoint.tensor(name, kind) for name in checkpoint.names() for kind in checkpoint.kinds(name)
    }


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name",
    [
        "one-bf16",
        "dp2-bf16",
        "pp2-fp32",
        "pp2-vpp2-fp32",
        "tp2-sp-bf16",
        "zero3-bf16",
        "offload-bf16",
        "pp2-dp2-bf16",
    ],
)
def test_resumed_run_is_bit_equal_to_one_that_never_stopped(runs: Runs, name: str) -> None:
    straight, resumed = runs.base / f"{name}-straight", runs.base / f"{name}-resumed"
    assert sorted(curve(straight)) == list(range(1, STEPS + 1))
    assert curve(resumed) == curve(straight)
    expected, found = state(straight), state(resumed)
    assert expected.keys() == found.keys()
    assert {kind for _, kind in expected} == {"weight", "exp_avg", "exp_avg_sq"}
    for key, tensor in expected.items():
        assert torch.equal(tensor, found[key]), key


@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("source", ["tp2-dp2", "zero3"])
@pytest.mark.parametrize("target", ["pp2", "zero3", "one"])
def test_resume_on_another_layout_continues_the_same_loss(runs: Runs, model: str, source: str, target: str) -> None:
    straight = curve(runs.base / f"{model}-straight")
    before = curve(runs.base / f"{model}-{source}")
    after = curve(runs.base / f"{model}-{source}-on-{target}")
    assert sorted(before) == list(range(1, STOP + 1))
    assert sorted(after) == list(range(STOP + 1, STEPS + 1))
    for step, loss in (before | after).items():
        assert loss == pytest.approx(straight[step], rel=1e-4), f"step {step}"


@pytest.mark.timeout(900)
def test_weights_change_between_checkpoints(runs: Runs) -> None:
    """Else the comparisons above would hold for a run that does nothing."""
    folder = runs.base / "one-bf16-straight" / "checkpoints"
    newest, older = (Checkpoint(path) for path in candidates(folder)[:2])
    name = "decoder.layers.0.mlp.linear_fc1.weight"
    assert newest.step > older.step
    assert (newest.tensor(name) - older.tensor(name)).abs().max() > 1e-4
