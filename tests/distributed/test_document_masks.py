"""Documents kept apart give one curve on any layout and in micro-batches of any size, and a run reports the right
figures.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch

from data_pipeline.packing import Packer, token_dtype
from data_pipeline.shards import ShardWriter, rows_per_member
from data_pipeline.stream import Stream, ValidationSet
from data_pipeline.tokenizer import Tokenizer
from launcher import evaluate, generate
from launcher.one_process import load_model, one_process
from tests.distributed.launch import run
from training.checkpoint import Checkpoint, CheckpointMismatch, candidates
from training.continuing import check_continues
from training.errors import RecipeError
from training.recipe import load_recipe

# -- the curve --------------------------------------------------------------------------------------------------------

LAYOUTS: dict[int, list[dict[str, Any]]] = {
    1: [
        {"layout": {}, "zero_stage": 0},
        {"layout": {}, "zero_stage": 0, "micro": 4},
        {"layout": {}, "zero_stage": 1, "micro": 2},
        {"layout": {}, "zero_stage": 0, "micro": 2, "plant": True},
        {"layout": {}, "zero_stage": 0, "masks": False},
    ],
    2: [
        *({"layout": {}, "zero_stage": stage, "micro": 2} for stage in range(4)),
        {"layout": {}, "zero_stage": 0, "plant": True},
        {"layout": {"tensor": 2}, "zero_stage": 1},
        {"layout": {"tensor": 2, "sequence": True}, "zero_stage": 3, "micro": 2, "recompute": "full"},
        {"layout": {"tensor": 2, "sequence": True}, "zero_stage": 1, "recompute": "selective"},
        {"layout": {"pipeline": 2}, "zero_stage": 1},
        {"layout": {"pipeline": 2}, "zero_stage": 0, "micro": 2, "recompute": "full"},
        {"layout": {"pipeline": 2, "virtual_pipeline": 2}, "zero_stage": 1, "micro": 2},
    ],
}


def cases(world_size: int) -> list[dict[str, Any]]:
    return [{"model": model, **case} for model in ("banded", "llama") for case in LAYOUTS[world_size]]


# -- a run ------------------------------------------------------------------------------------------------------------

RECIPE = """
run: {name: one, directory: RUNS, seed: 7}
model: {num_layers: 2, hidden_size: 32, num_attention_heads: 4, sequence_length: 32, initializer_std: 0.2}
data:
  mix: [{shards: SHARDS/short, weight: 0.6}, {shards: SHARDS/long, weight: 0.4}]
  validation: [{shards: SHARDS/short-validation}, {shards: SHARDS/long-validation}]
  document_masks: true
batch: {global_batch_size: 8, micro_batch_size: 2}
optimizer: {lr: 5.0e-3, warmup: 1, schedule: constant}
training: {steps: 4, precision: fp32, log_every: 1, validation_samples: 7, sample_prompt: this is}
checkpoint: {keep: 1}
"""
WORDS = ["the", "of", "and", "to", "in", "is", "that", "for", "it", "was", "on", "are", "as", "with", "his", "they"]


def text(number: int, words: int) -> str:
    return " ".join(WORDS[(number * number + 7 * i * i) % len(WORDS)] for i in range(number % words + 1)) + "."


def write_shards(folder: Path, name: str, texts: list[str], tokenizer: Tokenizer, length: int = 32) -> None:
    dtype = token_dtype(tokenizer.vocab_size)
    packer = Packer(length, tokenizer.eod_id, dtype, rows_per_member(length, dtype))
    (folder / name).mkdir()
    writer = ShardWriter(
        folder / name,
        name=name,
        sequence_length=length,
        dtype=dtype,
        vocab_size=tokenizer.vocab_size,
        eod_id=tokenizer.eod_id,
        tokenizer_sha256=tokenizer.sha256,
    )
    encoded = tokenizer.encode_batch(texts, threads=1)
    for block in packer.pack(encoded):
        writer.add(block)
    counts = np.bincount(np.concatenate(encoded), minlength=tokenizer.vocab_size)
    counts[tokenizer.eod_id] = len(texts)
    size = sum(len(one.encode()) for one in texts)
    writer.finish(tokens=packer.tokens, documents=len(texts), bytes=size, counts=counts)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With shards of many short documents (empty ones, too) and of fewer long ones."""
    folder = tmp_path_factory.mktemp("data")
    shards = folder / "shards"
    shards.mkdir()
    with (shards / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([text(i, 30) for i in range(200)]),
            model_writer=file,
            model_type="unigram",
            vocab_size=300,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            eos_id=1,
            unk_id=0,
            bos_id=-1,
            minloglevel=2,
        )
    tokenizer = Tokenizer(shards / "tokenizer.model")
    write_shards(shards, "short", ["" if i % 9 == 0 else text(i, 8) for i in range(300)], tokenizer)
    write_shards(shards, "long", [text(i, 60) for i in range(100)], tokenizer)
    write_shards(shards, "short-validation", ["" if i % 5 == 0 else text(i + 500, 8) for i in range(80)], tokenizer)
    write_shards(shards, "long-validation", [text(i + 500, 60) for i in range(30)], tokenizer)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("SHARDS", str(shards)).replace("RUNS", str(folder / "runs")))
    return path


@dataclass
class Trained:
    """The curves of all cases, and the folders of runs."""

    curves: list[dict[str, Any]]
    folder: Path
    recipe: Path


@pytest.fixture(scope="module")
def trained(recipe: Path) -> Trained:
    """One rank by `python -m training.worker`, as torchrun would start it; others in the launches of the curves."""
    folder = recipe.parent / "runs"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "training.worker", str(recipe)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    curves = []
    variants: dict[int, dict[str, list[str]]] = {
        1: {"unmasked": ["--data.document_masks=false"]},
        2: {"dp2": ["--batch.micro_batch_size=4"], "pp2": ["--parallel.pipeline=2", "--training.sample_prompt=null"]},
    }
    for world_size, named in variants.items():
        planned = [
            {"recipe": str(recipe), "folder": str(folder / name), "overrides": overrides}
            for name, overrides in named.items()
        ]
        argument = {"cases": cases(world_size), "runs": planned}
        found = run("tests.distributed.document_masks:train_all", world_size, argument, deadline=250)[0]
        assert found["finished"] == [True] * len(planned)
        curves += found["curves"]
    assert len(curves) == len(cases(1)) + len(cases(2))
    return Trained(curves, folder, recipe)


def worst(curve: dict[str, Any], against: dict[str, Any]) -> float:
    pairs = [(a, b) for key in ("loss", "grad_norm") for a, b in zip(curve[key], against[key], strict=True)]
    return max(abs(a - b) / abs(b) for a, b in pairs)


@pytest.mark.timeout(600)
def test_every_layout_and_micro_batch_size_gives_the_curve_of_one_rank(trained: Trained) -> None:
    reference = {}
    for curve in trained.curves:
        reference.setdefault(curve["case"]["model"], curve)
    assert all(one["case"]["layout"] == {} and one["case"]["zero_stage"] == 0 for one in reference.values())
    found = {str(curve["case"]): worst(curve, reference[curve["case"]["model"]]) for curve in trained.curves}
    wrong = [str(c["case"]) for c in trained.curves if c["case"].get("plant") or not c["case"].get("masks", True)]
    assert len(wrong) == 6
    # Errors planted on purpose are found: the divisor that suggests itself, and no masks at all.
    assert {case for case, error in found.items() if error > 1e-4} == set(wrong), found


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("other", ["dp2", "pp2"])
def test_runs_report_the_same_figures_on_any_layout(trained: Trained, other: str) -> None:
    one, two = metrics(trained.folder / "one"), metrics(trained.folder / other)
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2, 3, 4]
    keys = {"loss", "loss/short", "loss/long", "grad_norm", "parameter_norm"}
    for a, b in zip(one, two, strict=True):
        assert {k: b[k] for k in keys} == pytest.approx({k: a[k] for k in keys}, rel=1e-4)
    validation = {k: v for k, v in one[-1].items() if k.startswith("validation") and k != "validation_seconds"}
    assert len(validation) == 5
    assert {k: two[-1][k] for k in validation} == pytest.approx(validation, rel=1e-4)
    unmasked = metrics(trained.folder / "unmasked")
    assert abs(unmasked[-1]["validation_loss"] / validation["validation_loss"] - 1) > 1e-2


@pytest.mark.timeout(600)
def test_validation_is_the_mean_over_documents_run_alone(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained.folder / "one"
    recipe = load_recipe(folder)
    tokenizer = Tokenizer(Path(recipe.data.mix[0].shards).parent / "tokenizer.model")
    recipe.model.vocab_size = tokenizer.vocab_size
    nats, tokens, octets = 0.0, 0, 0
    with one_process(), torch.no_grad():
        model = load_model(recipe, Checkpoint(candidates(folder / "checkpoints")[0]))
        for source in recipe.data.validation:
            for row in ValidationSet([source]).batch(0, recipe.training.validation_samples).tokens:
                ends = np.flatnonzero(row == tokenizer.eod_id) + 1
                for document in np.split(row, ends):
                    if len(document) < 2:
                        continue
                    inputs, labels = (torch.from_numpy(x)[None] for x in (document[:-1], document[1:]))
                    positions = torch.arange(inputs.shape[1])[None]
                    nats += float(model(inputs, positions, None, labels=labels).double().sum())
                    tokens += labels.numel()
                    octets += int(tokenizer.token_bytes[document[1:]].sum())
    last = metrics(folder)[-1]
    assert 0 < tokens < 14 * 32 and octets > 0
    assert last["validation_loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert last["validation_bits_per_byte"] == pytest.approx(nats / math.log(2) / octets, rel=1e-5)
    arguments = argparse.Namespace(run=str(folder), step=None, samples=recipe.training.validation_samples)
    assert evaluate.run(arguments, []) == 0
    shown = capsys.readouterr().out
    assert "14 held-out samples" in shown
    assert re.search(rf"nats per token +{nats / tokens:.4f} ", shown)
    assert re.search(rf"bits per byte +{nats / math.log(2) / octets:.4f} ", shown)


@pytest.mark.timeout(600)
def test_text_is_generated_as_one_document(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained.folder / "one"
    sampling: dict[str, Any] = {"temperature": 0.0, "top_k": None, "top_p": 1.0, "seed": 0}
    arguments = argparse.Namespace(run=str(folder), prompt="the of", max_new_tokens=8, step=None, **sampling)
    assert generate.run(arguments, []) == 0
    recipe = load_recipe(folder)
    tokenizer = Tokenizer(Path(recipe.data.mix[0].shards).parent / "tokenizer.model")
    recipe.model.vocab_size = tokenizer.vocab_size
    tokens = tokenizer.encode("the of")  # no end before it: in training none can be seen from there
    length = len(tokens)
    with one_process(), torch.no_grad():
        model = load_model(recipe, Checkpoint(candidates(folder / "checkpoints")[0]))
        while len(tokens) < length + 8 and (len(tokens) == length or tokens[-1] != tokenizer.eod_id):
            positions = torch.arange(len(tokens))[None]
            tokens.append(int(model(torch.tensor([tokens]), positions, None)[0, -1].argmax()))
    drawn = [token for token in tokens[length:] if token != tokenizer.eod_id]
    assert capsys.readouterr().out == "the of" + tokenizer.decode(drawn) + "\n"
    with pytest.raises(RecipeError, match="how a document begins is not learned"):
        generate.run(argparse.Namespace(run=str(folder), prompt="", max_new_tokens=8, step=None, **sampling), [])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["one", "unmasked", "older"])
def test_resume_with_the_other_masks_is_refused(trained: Trained, name: str) -> None:
    folder = trained.folder / name.replace("older", "unmasked")
    checkpoint = Checkpoint(candidates(folder / "checkpoints")[0])
    state = copy.deepcopy(checkpoint.state)
    if name == "older":  # from before the option existed
        del checkpoint.state["recipe"]["data"]["document_masks"]
    before = bool(state["recipe"]["data"]["document_masks"])
    assert before == (name == "one")
    for now in (before, not before):
        recipe = load_recipe(trained.recipe, [f"--data.document_masks={str(now).lower()}"])
        recipe.model.vocab_size = state["recipe"]["model"]["vocab_size"]
        stream = Stream(recipe.data, recipe.run.seed)
        if now == before:
            check_continues(checkpoint, recipe, stream)
        else:
            with pytest.raises(CheckpointMismatch, match=f"with data.document_masks {before}"):
                check_continues(checkpoint, recipe, stream)
