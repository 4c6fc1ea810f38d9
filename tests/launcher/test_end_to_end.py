"""Through the commands alone: prepare, train, look, sample, hand over, take over, train on, as real processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.config import ShardSource
from data_pipeline.stream import ValidationSet
from data_pipeline.tokenizer import Tokenizer
from launcher.cli import main
from launcher.one_process import verified_checkpoint
from launcher.run_folder import RunFolder
from tests.launcher.conftest import Trestle, trestle_in
from training.checkpoint import DamagedCheckpoint
from training.metrics.events import read_events


@pytest.fixture(scope="module")
def trestle(workplace: Path) -> Trestle:
    return trestle_in(workplace)


@pytest.fixture(scope="module")
def exported(trained: RunFolder, trestle: Trestle, workplace: Path) -> Path:
    """What `trestle export` wrote of the run's newest checkpoint."""
    done = trestle("export", "runs/small", "handed-over", "--to", "huggingface")
    assert done.returncode == 0, done.stderr
    assert "GPT2LMHeadModel of step 4" in done.stdout and "tokenizer.json" in done.stdout
    return workplace / "handed-over"


def test_prepare_shows_its_shard_sets_and_what_comes_next(workplace: Path) -> None:
    shown = (workplace / "prepare.out").read_text()
    assert all(name in shown for name in ("network ", "network-validation ", "tools ", "tokenizer of 500 tokens"))
    assert "next: trestle train recipe.yaml" in shown


def test_train_streams_its_figures_and_ends_with_where_the_run_is(trained: RunFolder, workplace: Path) -> None:
    shown = (workplace / "train.out").read_text()
    assert "step 4/4" in shown and "run runs/small finished at step 4" in shown
    assert "validation loss (nats per token)" in shown and "resume runs/small" in shown
    assert [p.name for p in sorted(trained.checkpoints.iterdir())] == ["step-00000002", "step-00000004"]
    assert {"started", "checkpointed", "finished"} <= {event["event"] for event in read_events(trained.events)}
    assert (trained.logs / "rank-00000.log").stat().st_size > 0


def test_inspect_shows_a_runs_checkpoints_and_finds_the_damaged_one(
    trained: RunFolder, trestle: Trestle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = trestle("inspect", str(trained.path))
    assert done.returncode == 0 and done.stdout.count("verified") == 2 and "validation_bits_per_byte" in done.stdout
    copy = RunFolder(tmp_path / "copy")
    shutil.copytree(trained.path, copy.path)
    data = copy.checkpoints / "step-00000004" / "rank-00000.safetensors"
    flipped = bytearray(data.read_bytes())
    flipped[-1] ^= 1
    data.write_bytes(flipped)
    assert main(["inspect", str(copy.path)]) == 1
    shown = capsys.readouterr().out
    assert shown.count("verified") == 1 and "rank-00000.safetensors: checksum" in shown
    assert verified_checkpoint(copy, None).step == 2
    error = capsys.readouterr().err
    assert "step-00000004 is damaged" in error and "trying the one before" in error
    with pytest.raises(DamagedCheckpoint):
        verified_checkpoint(copy, 4)
    assert (copy.checkpoints / "step-00000004").is_dir(), "only the run itself sets a checkpoint aside"


def test_exported_model_has_the_validation_loss_that_the_run_reports(
    exported: Path, trained: RunFolder, workplace: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(exported).eval()
    held_out = ValidationSet([ShardSource(str(workplace / "shards" / "network-validation"))])
    tokens = torch.from_numpy(held_out.batch(0, 512).tokens)
    with torch.no_grad():
        logits = model(tokens[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), tokens[:, 1:].flatten())
    assert float(loss) == pytest.approx(trained.last_figures()["validation_loss"], rel=1e-5)


def test_exported_tokenizer_encodes_and_decodes_as_ours(exported: Path) -> None:
    from transformers import AutoTokenizer

    theirs: Any = AutoTokenizer.from_pretrained(exported)
    ours = Tokenizer(exported / "tokenizer.model")
    for text in (
        "def main(x):\n    return  x\t# naïve 日本語 🙂\n",
        "a ▁ mark",
        " <0x41>  ends with a space ",
        "\n\n\n",
    ):
        ids = theirs(text)["input_ids"]
        assert ids == ours.encode(text)
        assert theirs.decode(ids) == text
    assert theirs.eos_token_id == ours.eod_id


def test_greedy_text_is_that_of_transformers(exported: Path, trestle: Trestle) -> None:
    from transformers import AutoModelForCausalLM

    done = trestle(
        "generate", "runs/small", "--prompt", "-", "--temperature", "0", "--max_new_tokens", "12", stdin="import os"
    )
    assert done.returncode == 0, done.stderr
    tokenizer = Tokenizer(exported / "tokenizer.model")
    model: Any = AutoModelForCausalLM.from_pretrained(exported)
    prompt = [tokenizer.eod_id, *tokenizer.encode("import os")]
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.eod_id)
    drawn = [i for i in ids[0, len(prompt) :].tolist() if i != tokenizer.eod_id]
    assert done.stdout == "import os" + tokenizer.decode(drawn) + "\n"


def test_export_never_writes_over_anything(
    exported: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    before = {p: p.stat().st_mtime_ns for p in exported.iterdir()}
    assert main(["export", "runs/small", "handed-over", "--to", "huggingface"]) == 2
    assert "handed-over exists already" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in exported.iterdir()} == before
    assert not [p for p in exported.parent.iterdir() if p.name.endswith(".partial")]


def test_step_that_does_not_exist_is_refused_with_those_that_do(
    trained: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(trained.path), "--prompt", "x", "--step", "3"]) == 2
    assert "has no checkpoint of step 3; there are 2, 4" in capsys.readouterr().err


def test_prompt_that_leaves_no_room_is_refused(trained: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(trained.path), "--prompt", "日" * 64]) == 2
    assert "the prompt has 192 tokens, but the model was trained on 64 at a time" in capsys.readouterr().err


def test_imported_model_trains_on_under_another_layout(exported: Path, trestle: Trestle, workplace: Path) -> None:
    done = trestle("import", "handed-over", "--name", "taken-over", "--recipe", "recipe.yaml", "--training.steps", "1")
    assert done.returncode == 0, done.stderr
    run = RunFolder(workplace / "runs" / "taken-over")
    weights = load_file(run.checkpoints / "step-00000000" / "rank-00000.safetensors")
    theirs = load_file(exported / "model.safetensors")
    assert torch.equal(weights["weight/embedding.word_embeddings.weight"], theirs["transformer.wte.weight"])
    assert not weights["exp_avg/embedding.word_embeddings.weight"].any()
    done = trestle("resume", "runs/taken-over", "--cluster.ranks_per_node", "2", "--training.log_every", "1")
    assert done.returncode == 0, done.stderr
    assert "resuming from step 0" in done.stdout and "step 1/1" in done.stdout
    first = json.loads(run.metrics.read_text().splitlines()[0])
    # A fresh model of 500 tokens begins at about ln(500); this one has learned before.
    assert first["loss"] < np.log(500)
    events = {event["event"]: event for event in read_events(run.events)}
    assert events["resized"]["keys"] == {"cluster.ranks_per_node": {"old": 1, "new": 2}}
    assert events["started"]["ranks"] == 2 and events["resumed"]["step"] == 0


def test_import_refuses_another_tokenizer_and_keeps_nothing(
    exported: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    other = workplace / "other-tokenizer"
    shutil.copytree(exported, other)
    (other / "tokenizer.model").write_bytes(b"another")
    rest = ["--name", "refused", "--recipe", "recipe.yaml"]
    assert main(["import", "other-tokenizer", *rest]) == 2
    assert "was made with another tokenizer" in capsys.readouterr().err
    assert main(["import", "handed-over", *rest, "--model.num_layers", "3"]) == 2
    assert "--model.num_layers cannot be set: the model is that of handed-over" in capsys.readouterr().err
    assert not [p for p in (workplace / "runs").iterdir() if "refused" in p.name]
