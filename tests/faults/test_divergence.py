"""Gradients that are not numbers are skipped, by every rank; a spike of the loss sends the run back past its data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.launch import free_port
from tests.faults.running import TORCHRUN, TRESTLE, started
from training.position import Position

PLANTED = "tests.faults.planted_worker"


def two_ranks(name: str, *overrides: str) -> list[str]:
    ranks = ["--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    return [*TORCHRUN, *ranks, "-m", PLANTED, "recipe.yaml", "--run.name", name, *overrides]


@pytest.mark.timeout(900)
def test_gradient_that_is_no_number_on_one_rank_skips_the_step_on_all(workplace: Path) -> None:
    more = {"PLANTED": json.dumps({"nan": {"rank": 1, "step": 6}})}
    command = two_ranks("nan", "--training.stop_after", "12")
    with started(command, workplace, workplace / "runs" / "nan", more=more) as run:
        run.end(0)
    figures = {line["step"]: line for line in run.files.figures()}
    assert [figures[step]["skipped_steps"] for step in range(1, 13)] == [0] * 5 + [1] * 7
    assert figures[6]["grad_norm"] in ("NaN", "Infinity") and isinstance(figures[7]["grad_norm"], float)
    norms = [figures[step]["parameter_norm"] for step in range(1, 13)]
    assert norms[5] == norms[4], "the skipped step changed weights"
    assert len(set(norms)) == 11
    assert [e["step"] for e in run.files.events("skipped")] == [6]
    saved = run.files.newest()
    assert saved.state["position"]["skipped_steps"] == 1 and saved.state["position"]["optimizer_steps"] == 11
    assert all(bool(torch.isfinite(saved.tensor(name)).all()) for name in saved.names())


@pytest.mark.timeout(900)
def test_run_that_diverges_stops_with_one_line_and_is_not_restarted(workplace: Path) -> None:
    settings = ["--optimizer.lr=1e30", "--optimizer.warmup=0", "--training.precision=fp32", "--optimizer.eps=1e-30"]
    command = [*TRESTLE, "train", "recipe.yaml", "--run.name", "diverging", *settings, "--training.max_skipped_steps=5"]
    with started(command, workplace, workplace / "runs" / "diverging") as run:
        output = run.end(2)
    said = [line for line in output.splitlines() if "not finite" in line]
    assert len(said) == 1 and "5 steps in a row" in said[0] and "optimizer.lr" in said[0]
    assert "Traceback" not in output
    skipped = [e["step"] for e in run.files.events("skipped")]
    assert len(skipped) == 5 and skipped == list(range(skipped[0], skipped[0] + 5))
    assert not run.files.events("restarted")


@pytest.mark.timeout(900)
def test_spikes_send_the_run_back_past_their_data_and_a_resume_keeps_leaving_it_out(
    workplace: Path, tmp_path: Path
) -> None:
    """Checkpoints every 4 steps of 8 samples, two back each time.

    Samples 392 … 400, rubbish, are step 50: back over 48 to 44 (sample 352), 48 samples left out. Step n now begins at
    8 (n - 1) + 48, so that 408 … 416, rubbish too, is step 46: back over 44 to 40, which is before the first
    exception, and another 48 are left out. Were the two not applied one after the other, 392 … 400 would come again.
    """
    settings = ["--training.spike_factor=1.15", "--training.spike_checkpoints=2"]
    planted = {"rubbish": [[392, 400], [408, 416]], "served": str(tmp_path / "first")}
    folder = workplace / "runs" / "spiky"
    command = two_ranks("spiky", *settings, "--training.stop_after=52")
    with started(command, workplace, folder, more={"PLANTED": json.dumps(planted)}) as run:
        output = run.end(0)
    told = [(e["step"], e["back_to"], e["samples_skipped"]) for e in run.files.events("spike")]
    assert told == [(50, 44, 48), (46, 40, 48)], output
    assert [e["step"] for e in run.files.events("checkpointed")] == [*range(4, 49, 4), 44, 40, 44, 48, 52]
    abandoned = [e["checkpoint"] for e in run.files.events("checkpoint_abandoned")]
    assert abandoned == ["step-00000048", "step-00000044"]
    assert {f"{name}.abandoned" for name in abandoned} <= {path.name for path in run.files.checkpoints.iterdir()}
    exceptions = [{"kind": "skip", "at": 352, "count": 48}, {"kind": "skip", "at": 320, "count": 48}]
    assert run.files.newest().state["data"]["exceptions"] == exceptions
    batches = served(tmp_path / "first")
    last_return = max(number for number, batch in enumerate(batches) if batch["start"] == 320)
    assert batches[last_return:][:12] == [
        {"start": 8 * n, "samples": list(range(8 * n + 96, 8 * n + 104))} for n in range(40, 52)
    ]

    planted["served"] = str(tmp_path / "second")
    command = two_ranks("spiky", *settings, "--training.stop_after=60")
    with started(command, workplace, folder, more={"PLANTED": json.dumps(planted)}) as run:
        run.end(0)
    assert served(tmp_path / "second")[:8] == [
        {"start": 8 * n, "samples": list(range(8 * n + 96, 8 * n + 104))} for n in range(52, 60)
    ]
    assert len(run.files.events("spike")) == 2
    figures = run.files.figures()
    assert [line["step"] for line in figures] == list(range(1, 61))
    assert max(line["loss"] for line in figures[40:]) < 4.5, "rubbish was trained on"
    state = run.files.newest().state
    assert state["data"]["exceptions"] == exceptions and state["position"]["spikes"] == 2


def served(path: Path) -> list[dict[str, Any]]:
    """The batches that rank 0 was given, read ahead ones included."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_loss_that_is_no_number_does_not_hide_later_spikes() -> None:
    position = Position()
    assert not position.is_spike(2.0, factor=1.5)
    assert not position.is_spike(float("nan"), factor=1.5) and not position.is_spike(float("inf"), factor=1.5)
    assert position.loss_mean == 2.0
    assert position.is_spike(4.0, factor=1.5)
