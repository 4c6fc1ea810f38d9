"""Training on data that are remote, that change on a resume, and that are damaged: the same run where they are the
same, and told where they are not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import DataMismatch
from data_pipeline.prepare import prepare
from data_pipeline.recipe import CorpusConfig, PrepareConfig, TokenizerConfig
from data_pipeline.stream import Stream
from data_pipeline.tokenizer import Tokenizer
from tests.data_pipeline.range_server import serving
from tests.data_pipeline.shard_sets import flip_a_bit, write_set
from tests.distributed.launch import run
from training.checkpoint import Checkpoint, candidates
from training.continuing import stream_of
from training.metrics.events import read_events
from training.recipe import load_recipe

STEPS, STOP = 8, 4
RECIPE = f"""
run: {{name: test, seed: 7}}
model: {{num_layers: 1, hidden_size: 16, num_attention_heads: 2, sequence_length: 32}}
data:
  mix: [{{shards: SHARDS/web, weight: 0.7}}, {{shards: SHARDS/books, weight: 0.3}}]
  validation: [{{shards: SHARDS/kept}}]
  shuffle: windowed
  shuffle_window: 4
  cache: {{directory: CACHE}}
batch: {{global_batch_size: 8, micro_batch_size: 4}}
optimizer: {{lr: 1.0e-2}}
training: {{steps: {STEPS}, precision: fp32, log_every: 1}}
checkpoint: {{every: {STOP}, keep: 5}}
"""
OTHER_WEIGHTS = ["--data.mix.0.weight=0.1", "--data.allow-change"]
SEGMENT = '--data.curriculum=[{from: "1000 tokens", weights: {books: 1}}]'


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards/ (members of 8 samples) and a recipe that reads them from SHARDS."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "text").mkdir()
    (folder / "text" / "all.txt").write_text("".join(chr(c) for c in range(32, 127)) * 40)
    corpora = [CorpusConfig("text", [str(folder / "text" / "*.txt")], stages=[])]
    tokenizer = TokenizerConfig(type="char", vocab_size=360)
    config = PrepareConfig(
        str(folder / "shards"), corpora, sequence_length=32, tokenizer=tokenizer, validation_fraction=0.0
    )
    prepare(config, lambda line: None)
    made = Tokenizer(folder / "shards" / "tokenizer.model")
    for seed, (name, samples) in enumerate(
        {"web": 90, "books": 40, "kept": 16, "damaged/web": 90, "damaged/books": 40}.items()
    ):
        shape = {"rows": 8, "length": 32, "vocabulary": made.vocab_size, "tokenizer_sha256": made.sha256}
        write_set(folder / "shards" / name, samples, seed=seed, **shape)  # type: ignore[arg-type]
    (folder / "shards" / "damaged" / "tokenizer.model").write_bytes(
        (folder / "shards" / "tokenizer.model").read_bytes()
    )
    flip_a_bit(folder / "shards" / "damaged" / "web", first_member(folder))
    return folder


def first_member(data: Path) -> int:
    """The member of `web` that a run begins with."""
    loaded = load_recipe(Path(recipe(data, str(data / "shards"), "local")))
    corpus, position = Stream(loaded.data, loaded.run.seed).locate(np.arange(8))
    return int(position[corpus == 0][0]) // 8


def recipe(data: Path, shards: str, cache: str = "cache") -> str:
    path = data / f"recipe-{cache}.yaml"
    path.write_text(RECIPE.replace("SHARDS", shards).replace("CACHE", str(data / cache)))
    return str(path)


def curve(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


def newest(folder: Path) -> dict[str, Any]:
    return Checkpoint(candidates(folder / "checkpoints")[0]).state


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank trains them one after the other; then two ranks those with damaged shards."""
    folder = tmp_path_factory.mktemp("runs")
    here = recipe(data, str(data / "shards"), "local")

    def plan(name: str, path: str, *overrides: str) -> dict[str, Any]:
        return {"recipe": path, "folder": str(folder / name), "overrides": list(overrides)}

    early = f"--training.stop_after={STOP}"
    with serving(data) as server:
        server.fail("unavailable", "00000.tar", times=2)
        there = recipe(data, f"{server.url}/shards", "remote")
        alone = [
            plan("local", here),
            plan("remote", there),
            plan("moved", there, early),
            plan("moved", here),
            plan("curriculum", here, SEGMENT),
            plan("changed", here, early),
            plan("changed", here, *OTHER_WEIGHTS, "--training.stop_after=6"),
            plan("changed", here, OTHER_WEIGHTS[0]),
        ]
        assert run("tests.distributed.runs:train_runs", 1, alone, deadline=240) == [[True] * len(alone)]
    damaged = recipe(data, str(data / "shards" / "damaged"), "damaged")
    settings = ["--data.validation=[]", "--data.on_damaged=substitute"]
    together = [
        plan("damaged", damaged, *settings, "--batch.micro_batch_size=2"),
        plan("damaged-stopped", damaged, *settings, early),
        plan("damaged-stopped", damaged, "--data.validation=[]"),
    ]
    assert run("tests.distributed.runs:train_runs", 2, together, deadline=240) == [[True] * 3] * 2
    return folder


@pytest.mark.timeout(500)
def test_training_on_remote_shards_is_training_on_local_ones(runs: Path) -> None:
    assert sorted(curve(runs / "local")) == list(range(1, STEPS + 1))
    assert curve(runs / "remote") == curve(runs / "local")
    assert newest(runs / "remote")["data"] == newest(runs / "local")["data"]
    assert newest(runs / "remote")["validation_loss"] == newest(runs / "local")["validation_loss"]


def test_a_run_may_move_from_remote_to_local_shards_and_is_the_same_run(runs: Path) -> None:
    assert curve(runs / "moved") == curve(runs / "local")
    assert not [e for e in read_events(runs / "moved" / "events.jsonl") if e["event"] == "data_changed"]


def test_a_curriculum_begins_at_its_token(runs: Path) -> None:
    """1,000 tokens are 31.25 samples: the fourth batch of 8 samples is the last of the first segment."""
    plain, ordered = curve(runs / "local"), curve(runs / "curriculum")
    assert [plain[step] == ordered[step] for step in range(1, STEPS + 1)] == [True] * 4 + [False] * 4
    lines = [json.loads(line) for line in (runs / "curriculum" / "metrics.jsonl").read_text().splitlines()]
    passes = [line["epochs/web"] * 90 for line in lines]
    assert passes[3] == pytest.approx(passes[7]) and lines[7]["epochs/books"] * 40 + passes[7] == pytest.approx(64)


def test_a_change_of_the_data_is_noted_once_and_replayed_without_the_permission(data: Path, runs: Path) -> None:
    told = [e for e in read_events(runs / "changed" / "events.jsonl") if e["event"] == "data_changed"]
    assert [(e["step"], e["difference"]) for e in told] == [
        (STOP, "the weight of web was 0.7 and is 0.25 (normalised)")
    ]
    state = newest(runs / "changed")["data"]
    assert [(e["kind"], e["at"]) for e in state["exceptions"]] == [("change", STOP * 8)]
    losses, plain = curve(runs / "changed"), curve(runs / "local")
    assert [losses[step] == plain[step] for step in range(1, STOP + 1)] == [True] * STOP and losses[5] != plain[5]
    checkpoint = Checkpoint(candidates(runs / "changed" / "checkpoints")[0])
    path = data / "recipe-local.yaml"
    with pytest.raises(DataMismatch, match=r"the weight of web was 0\.25 and is 0\.7 .*--data\.allow-change"):
        stream_of(load_recipe(path), checkpoint)
    assert stream_of(load_recipe(path, [OTHER_WEIGHTS[0]]), checkpoint).changed is None


def test_a_damaged_member_is_replaced_on_all_ranks_and_told_once(data: Path, runs: Path) -> None:
    member = first_member(data)
    told = [e for e in read_events(runs / "damaged" / "events.jsonl") if e["event"] == "substituted"]
    assert [(e["corpus"], e["member"]) for e in told] == [("web", member)]
    assert f".tar is damaged: member {member:09d}.npy fails its CRC" in told[0]["reason"]
    substitution = {"kind": "substitute", "corpus": "web", "member": member}
    for name in ("damaged", "damaged-stopped"):
        assert newest(runs / name)["data"]["exceptions"] == [substitution]
    assert curve(runs / "damaged-stopped") == pytest.approx(curve(runs / "damaged"), rel=1e-5)
