"""`--dry-run` shows where ranks will be, what they hold and what they send, and neither starts nor writes anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher import cli
from launcher.dry_run import short
from launcher.placement import plan_of
from tests.launcher.plans import job_of

SMALL: dict[str, Any] = {
    "model": {"num_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "sequence_length": 16, "vocab_size": 100},
    "batch": {"global_batch_size": 16, "micro_batch_size": 2},
}


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["train", *words, "--dry-run"]) == 0
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_175b_on_1024_gpus_is_shown_without_a_cluster_and_without_torch_or_ray(tmp_path: Path) -> None:
    script = (
        "import sys; from launcher.cli import main; code = main(['train', 'gpt3-175b', '--dry-run']); "
        "sys.exit(code or ('torch' in sys.modules or 'ray' in sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    assert "1,024 ranks on 128 nodes: TP 8 x PP 16 x DP 8" in ended.stdout
    assert (
        "cross nodes: none of 128 TP groups of 8, all of 64 PP groups of 16, all of 128 DP groups of 8" in ended.stdout
    )
    assert "node-120 - node-127" in ended.stdout
    assert len(ended.stdout.splitlines()) < 60
    assert list(tmp_path.iterdir()) == []


def test_every_rank_is_shown_if_asked_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    table = shown(capsys, "gpt3-175b", "--all-ranks")
    assert table.splitlines()[1026].split() == ["1023", "node-127", "7", "7", "15", "7"]
    plan = json.loads(shown(capsys, "gpt3-175b", "--json"))
    assert plan["ranks"][64] == {"rank": 64, "node": "node-8", "device": 0, "tensor": 0, "pipeline": 1, "data": 0}
    assert len(plan["ranks"]) == 1024 and len(plan["stages"]) == 16
    # 174.6 billion parameters, and the vocabulary's padding and last stage's copy of the embedding beside them.
    assert sum(8 * stage["parameters"] for stage in plan["stages"]) == pytest.approx(175.2e9, rel=5e-3)


def test_submit_shows_the_same_without_a_head(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trained = shown(capsys, "gpt3-1.3b")
    assert cli.main(["submit", "gpt3-1.3b", "--dry-run"]) == 0
    assert capsys.readouterr().out == trained and list(tmp_path.iterdir()) == []


def test_what_cannot_run_is_refused_as_at_a_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "gpt3-175b", "--dry-run", "--parallel.tensor", "16"]) == 2
    assert "would cross nodes" in capsys.readouterr().err


def test_cluster_that_does_not_answer_is_said_and_nodes_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, "gpt3-125m", "--cluster.address", "127.0.0.9:1", "--cluster.connect_seconds", "0.5")
    assert "node-0" in said and "nodes: named by number, since no Ray head has answered at 127.0.0.9:1" in said


def test_groups_that_cross_nodes_are_counted_and_their_traffic_is_told_apart() -> None:
    document = {**SMALL, "parallel": {"tensor": 2, "pipeline": 2}}
    plan = plan_of(job_of(document, nodes=2, ranks_per_node=4), ["10.0.0.1", "10.0.0.2"])
    assert [at.node for at in plan.ranks] == ["10.0.0.1"] * 4 + ["10.0.0.2"] * 4
    assert {axis: (g.count, g.crossing) for axis, g in plan.groups.items()} == {
        "TP": (4, 0),
        "PP": (4, 4),
        "DP": (4, 0),
    }
    for stage in plan.stages:
        assert stage.across == stage.sent["pipeline"] + stage.sent["tied"] > 0
        assert stage.inside == stage.sent["tensor"] + stage.sent["data"] > 0
    wide = plan_of(job_of({**SMALL, "parallel": {"tensor": 2}}, nodes=2, ranks_per_node=4))
    assert wide.groups["DP"].crossing == 2 and wide.groups["TP"].crossing == 0
    assert wide.stages[0].across == wide.stages[0].sent["data"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt3-175b", []),
        ("gpt3-6.7b", ["--parallel.zero_stage", "2", "--parallel.offload_optimizer", "true"]),
        ("gpt3-1.3b", ["--parallel.zero_stage", "3"]),
        ("clip-vit-b-32", []),
    ],
)
def test_memory_is_what_plan_says_of_every_stage(
    name: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [name, *words, "--model.vocab_size", "50257", "--json"]
    stages = json.loads(shown(capsys, *words))["stages"]
    assert cli.main(["plan", *words]) == 0
    planned = json.loads(capsys.readouterr().out)["plan"]["stages"]
    for stage, other in zip(stages, planned, strict=True):
        assert {part: stage[part] for part in other["memory"]} == other["memory"]
        assert stage["peak"] == sum(
            stage[part] for part in ("weights", "gradients", "optimizer", "activations", "logits", "buffers")
        )
    assert all((stage["host"] > 0) == ("--parallel.offload_optimizer" in words) for stage in stages)


def test_short_form_fits_three_lines() -> None:
    lines = short(job_of({**SMALL, "parallel": {"tensor": 2}}, nodes=2, ranks_per_node=4))
    assert lines[0].startswith("8 ranks on 2 nodes: TP 2 x PP 1 x DP 4, ZeRO 1, bf16; 16 samples a step = 4 x 2 micro-")
    assert lines[1].startswith("memory a rank: ") and "optimizer" in lines[1]
    assert "none of 4 TP groups of 2" in lines[2] and "2 of 2" not in lines[2] and len(lines) == 3
