"""A run whose checkpoints live in an S3 bucket as well: an empty machine goes on from there, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_pipeline.prepare import prepare
from data_pipeline.recipe import CorpusConfig, PrepareConfig, TokenizerConfig
from data_pipeline.retrying import Patience
from tests.distributed.launch import free_port, run
from tests.distributed.test_resuming import words
from tests.s3_server import s3_bucket
from training.checkpoint import Checkpoint, candidates
from training.checkpoint.remote import RemoteFolder, StorageUnreachable, store
from training.errors import RecipeError
from training.metrics import read_events

RECIPE = """
run: {name: demo, seed: 7}
model: {family: gpt, num_layers: 2, hidden_size: 32, num_attention_heads: 4, sequence_length: 32}
data: {mix: [{shards: SHARDS/words}]}
batch: {global_batch_size: 4, micro_batch_size: 2}
optimizer: {lr: 2.0e-3, warmup: 3}
training: {steps: 6, precision: bf16, log_every: 1}
checkpoint: {every: 2, keep: 2, remote: "s3://lab/runs"}
"""


@pytest.fixture(scope="module")
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    """An empty bucket named `lab` on a server of this test's own, which ranks find as users' ranks find theirs."""
    with s3_bucket("lab") as files:
        yield files


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "words.jsonl").write_text("".join(json.dumps({"text": words(i)}) + "\n" for i in range(60)))
    config = PrepareConfig(
        output=str(folder / "shards"),
        sequence_length=32,
        tokenizer=TokenizerConfig(type="bpe", vocab_size=300),
        validation_fraction=0.0,
        corpora=[CorpusConfig(name="words", sources=[str(folder / "words.jsonl")])],
    )
    prepare(config, lambda _: None)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("SHARDS", str(folder / "shards")))
    return path


def spec(recipe: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    return {"recipe": str(recipe), "folder": str(folder), "overrides": list(overrides)}


def figures(folder: Path) -> dict[int, tuple[float, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines}


@pytest.mark.timeout(450)
def test_empty_machine_continues_from_the_bucket_bit_for_bit(
    bucket: fsspec.AbstractFileSystem, recipe: Path, tmp_path: Path
) -> None:
    straight, first, second, alone = (tmp_path / name for name in ("straight", "first", "second", "alone"))
    launched = [
        spec(recipe, straight, "--checkpoint.remote=null"),
        spec(recipe, first, "--training.stop_after=4"),
        spec(recipe, second),
    ]
    assert run("tests.distributed.runs:train_runs", 2, launched, deadline=240.0) == [[True] * 3] * 2
    # The second folder had nothing of its own: what it trained on came out of the bucket.
    assert [e["step"] for e in read_events(second / "events.jsonl") if e["event"] == "resumed"] == [4]
    assert figures(second) == {step: figures(straight)[step] for step in (5, 6)}
    wanted, found = (Checkpoint(candidates(folder / "checkpoints")[0]) for folder in (straight, second))
    assert all((wanted.tensor(name) == found.tensor(name)).all() for name in wanted.names())
    remote = RemoteFolder("s3://lab/runs", "demo")
    assert remote.names() == ["step-00000006", "step-00000004"]  # keep: 2 holds there, too
    Checkpoint(remote.source("step-00000006")).verify()
    uploaded = [e["step"] for e in read_events(first / "events.jsonl") if e["event"] == "uploaded"]
    assert uploaded[-1] == 4
    # One rank, another machine, and the newest in the bucket damaged: the one before is taken, and it is told.
    path = "lab/runs/demo/checkpoints/step-00000006/rank-00001.safetensors"
    content = bytearray(bucket.cat_file(path))
    content[-1] ^= 1
    bucket.pipe_file(path, bytes(content))
    assert run("tests.distributed.runs:train_runs", 1, [spec(recipe, alone)], deadline=120.0) == [[True]]
    events = read_events(alone / "events.jsonl")
    assert [e["checkpoint"] for e in events if e["event"] == "checkpoint_damaged"] == [remote.path("step-00000006")]
    assert [e["step"] for e in events if e["event"] == "resumed"] == [4]
    assert Checkpoint(remote.source("step-00000006")).verify() is None  # replaced by this run's own
    assert figures(alone)[6][0] == pytest.approx(figures(straight)[6][0], rel=2e-2)


def test_large_files_go_up_in_parts(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    content = bytes(range(256)) * (12 << 12)  # 12 MiB
    (tmp_path / "large").write_bytes(content)
    place = RemoteFolder("s3://lab/parts", "demo", part_bytes=5 << 20).store
    place.upload(tmp_path / "large", "checkpoints/large")
    about = bucket.info("lab/parts/demo/checkpoints/large")
    assert about["ETag"].strip('"').endswith("-3")  # S3's mark of an object of three parts
    assert place.read("checkpoints/large") == content
    assert place.read("checkpoints/large", 5 << 20, (5 << 20) + 7) == content[5 << 20 : (5 << 20) + 7]
    place.remove_folder("checkpoints")
    assert place.names("checkpoints") == []
    assert not place.exists("checkpoints/large")


def test_bucket_that_is_not_there_is_told_from_an_empty_place(bucket: fsspec.AbstractFileSystem) -> None:
    assert RemoteFolder("s3://lab/nothing/yet", "demo").newest(set()) is None
    with pytest.raises(RecipeError, match="no such bucket: make it first"):
        RemoteFolder("s3://nowhere/runs", "demo").newest(set())


def test_server_that_does_not_answer_is_no_empty_place(
    bucket: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "REMOTE", Patience(attempts=1, first_pause=0.0, total=1.0))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StorageUnreachable, match="cannot be read"):
        RemoteFolder("s3://lab/runs", "demo").newest(set())
