"""The time line of a plan is the schedule that runs: the orders of Megatron Core, and the bubble of the papers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.job import job_of
from launcher.plan.estimate import estimate
from launcher.plan.hardware import accelerator
from launcher.plan.schedule import order, simulate
from launcher.plan.timeline import axis_of, lanes_of
from modeling.layout import Layout

LAYOUTS = st.builds(
    Layout, pipeline=st.integers(2, 6), virtual_pipeline=st.integers(1, 4), tensor=st.just(1), sequence=st.just(False)
)


@given(LAYOUTS, st.integers(1, 4))
def test_every_micro_batch_passes_each_chunk_once_forward_and_once_back(layout: Layout, rounds: int) -> None:
    count = rounds * layout.pipeline
    for stage in range(layout.pipeline):
        done = order(layout, stage, count)
        assert len(done) == len(set(done)) == 2 * count * layout.virtual_pipeline


@given(LAYOUTS, st.integers(1, 4))
def test_as_much_is_in_flight_as_the_memory_is_planned_for(layout: Layout, rounds: int) -> None:
    count = rounds * layout.pipeline
    for stage in range(layout.pipeline):
        kept = most = 0
        for work in order(layout, stage, count):
            kept += 1 if work.kind == "forward" else -1
            most = max(most, kept)
        assert most / layout.virtual_pipeline == layout.in_flight(stage, count)


@given(LAYOUTS, st.integers(1, 4))
def test_bubble_of_equal_stages_is_that_of_the_paper(layout: Layout, rounds: int) -> None:
    """Narayanan et al. 2021, sections 2.2.1 and 2.2.2: (p - 1) (t_f + t_b) / v."""
    count, forward, backward = rounds * layout.pipeline, 1.0, 2.5
    events = simulate(layout, count, [forward] * layout.pipeline, [backward] * layout.pipeline)
    ended = max(of[-1].end for of in events)
    bubble = (layout.pipeline - 1) * (forward + backward) / layout.virtual_pipeline
    assert ended == pytest.approx(count * (forward + backward) + bubble)


def test_orders_are_megatron_cores_own() -> None:
    from megatron.core.pipeline_parallel.schedules import get_schedule_table

    layout, count = Layout(pipeline=4, virtual_pipeline=3), 8
    forwards = [w for w in order(layout, 1, count) if w.kind == "forward"]
    assert [(w.micro_batch, w.chunk) for w in forwards] == get_schedule_table(count, 3, 4)


@pytest.mark.parametrize("chunks", [1, 3])
def test_time_line_ends_when_the_estimate_says(chunks: int) -> None:
    job = job_of(
        {
            "model": {"preset": "gpt3-6.7b", "num_layers": 48, "vocab_size": 50257},
            "batch": {"global_batch_size": 128, "micro_batch_size": 1},
            "parallel": {"pipeline": 8, "virtual_pipeline": chunks, "tensor": 2},
            "cluster": {"nodes": 4, "ranks_per_node": 8},
        }
    )
    found = estimate(job, accelerator("h100"))
    lanes = lanes_of(found)
    assert max(span.end for lane in lanes for span in lane.spans) == pytest.approx(found.step.total_seconds, rel=0.02)
    for lane in lanes:  # nothing is missing, and nothing twice
        spans = sorted((span.begin, span.end) for span in lane.spans)
        assert all(before[1] == pytest.approx(after[0], abs=1e-9) for before, after in itertools.pairwise(spans))
    axis = axis_of(found, lanes)
    assert axis.cut is not None and 0 < axis.cut[0] < axis.cut[1] < axis.end
    few = replace(job, recipe=replace(job.recipe, batch=replace(job.recipe.batch, global_batch_size=16)))
    short = estimate(few, accelerator("h100"))
    assert axis_of(short, lanes_of(short)).cut is None


def test_loss_over_the_whole_batch_comes_between_the_passes() -> None:
    job = job_of(
        {
            "model": {"preset": "clip-vit-b-32"},
            "batch": {"global_batch_size": 4096, "micro_batch_size": 1024},
            "cluster": {"nodes": 1, "ranks_per_node": 1},
        }
    )
    (lane,) = lanes_of(estimate(job, accelerator("h100")))
    drawn = [span.kind for span in sorted(lane.spans, key=lambda span: span.begin)]
    kinds = [kind for kind in drawn if kind in ("forward", "loss", "backward")]
    assert kinds == ["forward"] * 4 + ["loss"] + ["forward", "backward"] * 4
