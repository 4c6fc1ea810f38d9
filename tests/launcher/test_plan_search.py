"""`trestle plan --search` proposes nothing that could not start, and finds what trying everything finds."""

from __future__ import annotations

import contextlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import UserError
from data_pipeline.errors import BadConfig
from launcher import cli
from launcher.dry_run import check_anywhere
from launcher.job import Job, job_of
from launcher.plan.candidates import Candidate, as_it_is, divisors, overrides
from launcher.plan.estimate import estimate
from launcher.plan.figures import Estimate
from launcher.plan.hardware import Accelerator, accelerator
from launcher.plan.reasons import peak, rounded_seconds
from launcher.plan.search import search
from modeling.errors import ModelError
from training.errors import RecipeError

H100 = accelerator("h100")


def tiny(nodes: int, gpus: int, layers: int = 4, batch: int = 8, **sections: dict[str, Any]) -> Job:
    model = {"num_layers": layers, "hidden_size": 64, "num_attention_heads": 4, "sequence_length": 32}
    document = {
        "model": {**model, "vocab_size": 128, **sections.get("model", {})},
        "batch": {"global_batch_size": batch, "micro_batch_size": 1, **sections.get("batch", {})},
        "training": sections.get("training", {}),
        "cluster": {"nodes": nodes, "ranks_per_node": gpus},
    }
    return job_of(document)


def by_brute_force(job: Job, gpu: Accelerator) -> list[Estimate]:
    """Every combination of every number, each put to `Job.check`."""
    world, batch = job.world_size, job.recipe.batch.global_batch_size
    numbers = range(1, max(world, batch, job.recipe.model.num_layers) + 1)
    found = []
    for tensor, pipeline, chunks in itertools.product(range(1, world + 1), range(1, world + 1), numbers):
        if world % (tensor * pipeline):
            continue
        for sequence, stage, size, recompute in itertools.product(
            (False, True), (0, 1, 2, 3), numbers, ("none", "selective", "full")
        ):
            layout = replace(
                job.recipe.parallel,
                tensor=tensor,
                pipeline=pipeline,
                virtual_pipeline=chunks,
                sequence=sequence,
                zero_stage=stage,  # type: ignore[arg-type]
            )
            if stage > 1 and world == tensor * pipeline:
                continue  # one replica: the same as stage 1
            candidate = Candidate(layout, size, recompute)  # type: ignore[arg-type]
            with contextlib.suppress(RecipeError, ModelError, BadConfig, UserError):
                check_anywhere(candidate.of(job))
                found.append(estimate(candidate.of(job), gpu))
    return found


@pytest.mark.parametrize("job", [tiny(2, 2), tiny(1, 4, batch=4), tiny(3, 1, layers=6, batch=6)])
def test_the_best_of_trying_everything_is_the_best_that_is_found(job: Job) -> None:
    everything = by_brute_force(job, H100)
    memories = sorted(map(peak, everything))
    for limit in (H100.memory_bytes, memories[len(memories) // 2]):
        gpu = replace(H100, memory_bytes=limit)
        found = search(job, gpu)
        fitting = sorted(rounded_seconds(one) for one in everything if peak(one) <= gpu.usable_bytes)
        assert (found.legal, found.fitting) == (len(everything), len(fitting))
        assert [rounded_seconds(one.estimate) for one in found.proposals] == fitting[:10]
    assert len(fitting) < len(everything)


@settings(max_examples=8)
@given(
    nodes=st.integers(1, 4),
    gpus=st.sampled_from([1, 2, 4, 6]),
    layers=st.sampled_from([2, 4, 6, 12]),
    batch=st.sampled_from([12, 16, 48]),
    precision=st.sampled_from(["bf16", "fp32"]),
    compiled=st.booleans(),
)
def test_every_proposal_could_start(
    nodes: int, gpus: int, layers: int, batch: int, precision: str, compiled: bool
) -> None:
    job = tiny(nodes, gpus, layers, batch, training={"precision": precision, "compile": compiled})
    if batch % (nodes * gpus):
        return  # there may be no legal layout at all: tests below
    found = search(job, H100)
    steps = [rounded_seconds(one.estimate) for one in found.proposals]
    assert found.proposals and steps == sorted(steps)
    assert all(one.loses_by for one in found.proposals[1:]) and not found.proposals[0].loses_by
    for one in found.proposals:
        kept = one.estimate
        check_anywhere(Candidate(kept.parallel, kept.micro_batch_size, kept.recompute).of(job))  # type: ignore[arg-type]


def test_overrides_make_the_very_layout_that_was_proposed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", "gpt3-13b", "--nodes", "4", "--gpus-per-node", "8", "--search", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["search"]
    command = "trestle train gpt3-13b --cluster.nodes 4"
    assert found["command"] == command and len(found["proposals"]) == 10
    for one in found["proposals"][:2]:
        assert cli.main(["plan", *command.split()[2:], *one["overrides"].split(), "--json"]) == 0
        again = json.loads(capsys.readouterr().out)["plan"]
        assert again["step"] == one["plan"]["step"] and again["stages"] == one["plan"]["stages"]


def test_nothing_fits_names_the_nearest_and_what_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "gpt3-175b", "--nodes", "1", "--gpu", "h100", "--batch.ramp", "null", "--search"]) == 0
    said = capsys.readouterr().out
    assert "0 fit" in said and "NOTHING FITS. The nearest is short of " in said
    # Of 174.6 billion parameters 2 bytes of weight, 4 of gradient, 12 of optimizer's state: 3.1 TB by 76 GB.
    assert "42 GPUs at least" in said and "--parallel.offload_optimizer true" in said


def test_ramp_that_forbids_every_layout_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "gpt3-125m", "--nodes", "32", "--gpus-per-node", "8", "--search"]
    ramp = ["--batch.ramp", "{start: 1, increment: 1, over: 1B tokens}", "--parallel.zero_stage", "1"]
    assert cli.main([*words, *ramp]) == 2
    assert "batch.ramp allows no layout on 256 GPUs" in capsys.readouterr().err


def test_reasons_name_the_part_of_the_step_that_decides() -> None:
    model = {"hidden_size": 1024, "num_attention_heads": 16, "sequence_length": 1024}
    found = search(tiny(2, 2, layers=4, batch=8, model=model), H100, most=40)
    names = ("compute", "computed again", "TP traffic", "PP traffic", "bubble", "DP traffic", "optimizer", "as fast")
    for better, worse in itertools.pairwise(found.proposals):
        assert worse.loses_by.startswith(names), worse.loses_by
        if worse.loses_by.startswith("bubble"):
            assert worse.estimate.step.bubble_seconds > better.estimate.step.bubble_seconds
            assert " % of the step against " in worse.loses_by


def test_what_differs_from_the_recipe_is_all_that_is_overridden() -> None:
    job = tiny(2, 2)
    assert overrides(job, as_it_is(job)) == ""
    other = replace(as_it_is(job), parallel=replace(job.recipe.parallel, tensor=2, sequence=True))
    assert overrides(job, other) == "--parallel.tensor 2 --parallel.sequence true"


@given(st.integers(1, 5000))
def test_divisors_are_all_that_divide(number: int) -> None:
    assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]
