"""What a job comes to: FLOPs and training compute against the paper, times against what they must obey."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import asdict, fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.plan.efficiency import default_efficiency
from launcher.plan.estimate import Estimate, Prices, estimate
from launcher.plan.figures import StepTime
from launcher.plan.hardware import accelerator
from launcher.plan.published import rows
from modeling.gpt.config import GPTConfig
from modeling.gpt.presets import PRESETS
from tests.launcher.plan_jobs import batched, changed, decoder, pairs
from training.config import ParallelConfig

H100, A100 = accelerator("h100"), accelerator("a100-80gb")

# Brown et al. 2020, table D.1: petaflop/s-days, FLOPs, parameters in millions. All on 300 billion tokens, 6 FLOPs a
# parameter and token (2 forward, 3 times for backward).
TABLE_D1 = {
    "gpt3-125m": (2.60e0, 2.25e20, 125),
    "gpt3-350m": (7.42e0, 6.41e20, 356),
    "gpt3-760m": (1.58e1, 1.37e21, 760),
    "gpt3-1.3b": (2.75e1, 2.38e21, 1_320),
    "gpt3-2.7b": (5.52e1, 4.77e21, 2_650),
    "gpt3-6.7b": (1.39e2, 1.20e22, 6_660),
    "gpt3-13b": (2.68e2, 2.31e22, 12_850),
    "gpt3-175b": (3.64e3, 3.14e23, 174_600),
}


@pytest.mark.parametrize("preset", TABLE_D1)
def test_training_compute_of_gpt3_is_the_papers_within_a_percent(preset: str) -> None:
    days, flops, millions = TABLE_D1[preset]
    job = decoder(preset, nodes=128, training={"steps": "300B tokens"}, batch={"global_batch_size": 1024})
    found = estimate(job, accelerator("v100"))
    assert found.parameters == pytest.approx(millions * 1e6, rel=0.005)
    # The run ends with a whole step, after at most one too many.
    step = found.global_batch_size * found.sequence_length
    assert 300_000_000_000 <= found.training.tokens < 300_000_000_000 + step
    a_token = found.flops.matmul / step
    assert a_token == 6 * found.parameters
    assert a_token * 300e9 == pytest.approx(flops, rel=0.01)
    assert found.training.petaflop_s_days == pytest.approx(days, rel=0.01)


def totals(step: StepTime) -> float:
    hidden = ("total_seconds", "data_overlapped_seconds", "tensor_overlapped_seconds")
    return sum(getattr(step, field.name) for field in fields(step) if field.name not in hidden)


LAYOUTS = st.sampled_from(
    [
        ParallelConfig(),
        ParallelConfig(zero_stage=3),
        ParallelConfig(zero_stage=2, offload_optimizer=True),
        ParallelConfig(tensor=2),
        ParallelConfig(tensor=4, sequence=True),
        ParallelConfig(pipeline=4),
        ParallelConfig(tensor=2, pipeline=4, virtual_pipeline=3, sequence=True),
        ParallelConfig(tensor=8, pipeline=8, sequence=True),
    ]
)
RECOMPUTE = st.sampled_from(["none", "selective", "full"])
SEARCHED = settings(max_examples=12, deadline=None)


def planned(parallel: ParallelConfig, samples: int, micro: int, recompute: str, nodes: int = 8) -> Estimate:
    job = decoder(nodes=nodes, training={"recompute": recompute})
    return estimate(batched(changed(job, parallel=parallel), samples, micro), H100)


@SEARCHED
@given(parallel=LAYOUTS, doubled=st.integers(0, 3), micro=st.sampled_from([1, 2, 4]), recompute=RECOMPUTE)
def test_a_steps_parts_add_up_and_none_is_negative(
    parallel: ParallelConfig, doubled: int, micro: int, recompute: str
) -> None:
    found = planned(parallel, 256 * 2**doubled, micro, recompute)
    assert totals(found.step) == pytest.approx(found.step.total_seconds)
    assert min(asdict(found.step).values()) >= 0
    tokens = found.global_batch_size * found.sequence_length
    assert found.tokens_per_second * found.step.total_seconds == pytest.approx(tokens)
    attainable = found.world_size * H100.peak_flops * found.step.total_seconds
    assert found.mfu * attainable == pytest.approx(found.flops.per_token * tokens)
    assert found.mfu_causal < found.mfu < 0.803  # the largest product's rate
    needed = found.flops.products + found.flops.attention_causal
    assert found.hfu * attainable == pytest.approx(found.flops.hardware)
    assert found.flops.hardware == pytest.approx(needed) if recompute == "none" else found.flops.hardware > needed
    slowest = max(found.stages, key=lambda stage: stage.seconds)
    in_work = found.step.compute_seconds + found.step.recompute_seconds + found.step.tensor_seconds
    assert in_work == pytest.approx(found.micro_batches * slowest.seconds)


@SEARCHED
@given(pipeline=st.sampled_from([2, 4, 8]), chunks=st.sampled_from([1, 3]), doubled=st.integers(0, 3))
def test_the_bubble_is_the_papers_and_its_share_falls_with_micro_batches(
    pipeline: int, chunks: int, doubled: int
) -> None:
    parallel = ParallelConfig(pipeline=pipeline, virtual_pipeline=chunks)
    few, many = (planned(parallel, count, 1, "none") for count in (512 * 2**doubled, 1024 * 2**doubled))
    shares = [one.step.bubble_seconds / one.step.total_seconds for one in (few, many)]
    assert shares[0] > shares[1] > 0
    assert few.step.bubble_seconds == pytest.approx(many.step.bubble_seconds)
    # Narayanan et al. 2021, section 2.2: (p - 1) / v micro-batches' time, were all stages the slowest, or the fastest.
    times = [(pipeline - 1) / chunks * stage.seconds for stage in few.stages]
    handed = few.step.pipeline_seconds / few.micro_batches / chunks * (pipeline - 1)
    assert min(times) + handed - 1e-9 <= few.step.bubble_seconds <= max(times) + handed + 1e-9


@SEARCHED
@given(parallel=LAYOUTS, micro=st.sampled_from([1, 2, 4]), recompute=RECOMPUTE)
def test_times_go_the_way_that_they_must(parallel: ParallelConfig, micro: int, recompute: str) -> None:
    here = planned(parallel, 256, micro, recompute)
    assert planned(parallel, 512, micro, recompute).step.total_seconds > here.step.total_seconds
    again = [planned(parallel, 256, micro, way).step.total_seconds for way in ("none", "selective", "full")]
    assert again == sorted(again)
    job = batched(changed(decoder(nodes=8), parallel=parallel), 256, micro)
    slower = estimate(job, A100).step.total_seconds
    assert slower > estimate(job, H100).step.total_seconds
    narrow = replace(H100, network_bandwidth=H100.network_bandwidth / 4, link_bandwidth=H100.link_bandwidth / 4)
    assert estimate(job, narrow).step.total_seconds >= estimate(job, H100).step.total_seconds
    assert estimate(job, replace(H100, memory_bandwidth=1e12)).step.total_seconds > slower / 10
    longer = GPTConfig(**{**PRESETS["gpt3-1.3b"], "num_layers": 48})
    assert estimate(changed(job, model=longer), H100).step.total_seconds > estimate(job, H100).step.total_seconds


def test_compiled_layers_move_less_and_sequence_parallelism_waits_less() -> None:
    job = decoder(parallel={"tensor": 8})
    plain = estimate(job, H100).step
    compiled = estimate(decoder(parallel={"tensor": 8}, training={"compile": True}), H100).step
    assert compiled.compute_seconds < plain.compute_seconds
    sequence = estimate(decoder(parallel={"tensor": 8, "sequence": True}), H100).step
    assert sequence.compute_seconds < plain.compute_seconds
    assert 0 == plain.tensor_overlapped_seconds < sequence.tensor_overlapped_seconds
    assert sequence.tensor_seconds < plain.tensor_seconds


@pytest.mark.parametrize(
    ("sequence", "recompute", "collectives"),
    [
        (False, "none", 4),
        (False, "selective", 5),
        (False, "full", 6),
        (True, "none", 10),
        (True, "selective", 12),
        (True, "full", 14),
    ],
)
def test_each_tensor_parallel_collective_of_a_layer_has_its_latency(
    sequence: bool, recompute: str, collectives: int
) -> None:
    """Forward and backward: two all-reduces each; under sequence parallelism gathers and scatters, four and six."""
    job = decoder(parallel={"tensor": 8, "sequence": sequence}, training={"recompute": recompute})
    usual = default_efficiency(H100)
    slow, fast = (estimate(job, H100, efficiency=replace(usual, latency=seconds)).step for seconds in (1e-3, 0.0))
    waits = slow.tensor_seconds + slow.tensor_overlapped_seconds - fast.tensor_seconds - fast.tensor_overlapped_seconds
    micro_batches, layers = 512, 24
    assert waits == pytest.approx(micro_batches * layers * collectives * 1e-3)


def test_bands_and_documents_cost_all_pairs_and_a_slower_kernel() -> None:
    long = {"sequence_length": 8192}
    dense = estimate(decoder(model=long), H100)
    banded = estimate(decoder(model={**long, "attention": "alternating"}), H100)
    documents = estimate(decoder(model=long, data={"document_masks": True}), H100)
    assert dense.step.compute_seconds < banded.step.compute_seconds < documents.step.compute_seconds
    assert documents.flops.attention == dense.flops.attention > banded.flops.attention
    assert documents.flops.hardware == pytest.approx(documents.flops.products + documents.flops.attention)
    assert dense.flops.hardware == pytest.approx(dense.flops.products + dense.flops.attention_causal)
    assert any("computes all pairs" in line for line in banded.assumptions)
    assert not any("computes all pairs" in line for line in dense.assumptions)
    # Grouped queries spare nothing of attention itself, and no fused kernel takes them with a mask.
    shared = {**long, "num_query_groups": 4}
    unmasked, masked = (estimate(decoder(model=shared, data={"document_masks": flag}), H100) for flag in (False, True))
    assert unmasked.step.compute_seconds < dense.step.compute_seconds
    assert masked.step.compute_seconds > documents.step.compute_seconds
    assert [any("no fused kernel" in line for line in one.assumptions) for one in (unmasked, masked)] == [False, True]


def test_a_plan_says_on_which_runs_its_constant_was_chosen_and_what_its_own_runs_were() -> None:
    def said(gpu: str) -> str:
        return "\n".join(estimate(decoder(), accelerator(gpu)).assumptions)

    assert "68% (chosen on 4 published H100 runs);" in said("h100")
    assert "68% (chosen on 4 published H100 runs; none of them on b200);" in said("b200")
    assert "87% (chosen on 10 published A100 runs; none of them on a100-40gb);" in said("a100-40gb")
    own = [row.error for row in rows() if row.run.part == "own"]
    assert f"{len(own)} CLIP runs".replace("3", "three") in said("h100")
    assert f"{-max(own):.0%} to {-min(own):.0%}".replace("%", "", 1).replace("%", " %") + " too fast" in said("h100")


def test_gradients_that_wait_grow_with_replicas_on_other_nodes_but_not_with_micro_batches() -> None:
    data = [estimate(decoder(nodes=nodes), H100).step.data_seconds for nodes in (1, 2, 16)]
    assert data == sorted(data) and data[0] > 0
    assert estimate(decoder(ranks=1), H100).step.data_seconds == 0
    few, many = (estimate(batched(decoder(nodes=2), count), H100).step for count in (64, 512))
    assert few.data_seconds == many.data_seconds
    every = [changed(decoder(nodes=2), parallel=ParallelConfig(zero_stage=2))]
    few, many = (estimate(batched(every[0], count), H100).step for count in (64, 512))
    assert many.data_seconds > 4 * few.data_seconds  # ZeRO 2 reduces after every micro-batch


def test_a_gradient_cache_runs_forward_twice_and_one_micro_batch_needs_none() -> None:
    several, one = estimate(pairs(micro_batch_size=256), H100), estimate(pairs(micro_batch_size=1024), H100)
    assert (several.micro_batches, one.micro_batches) == (4, 1)
    assert several.step.recompute_seconds == pytest.approx(4 * several.stages[0].forward_seconds)
    assert one.step.recompute_seconds == 0
    assert several.step.batch_loss_seconds == one.step.batch_loss_seconds > 0
    forward_and_loss = several.flops.hardware - several.flops.products - several.flops.attention_causal
    loss = one.flops.hardware - one.flops.products - one.flops.attention_causal
    assert forward_and_loss > several.flops.products / 4 > loss > 0
    assert several.flops.matmul == pytest.approx(several.flops.products, rel=0.02)


def test_a_ramps_small_batches_take_their_own_time() -> None:
    job = decoder(parallel={"pipeline": 8}, batch={"global_batch_size": 1024, "micro_batch_size": 1})
    ramp = decoder(
        parallel={"pipeline": 8},
        batch={
            "global_batch_size": 1024,
            "micro_batch_size": 1,
            "ramp": {"start": 256, "increment": 256, "over": "100M tokens"},
        },
        training={"steps": 100},
    )
    whole, ramped = estimate(job, H100), estimate(ramp, H100)
    assert ramped.step == whole.step  # a step is one of the full size
    assert ramped.training.tokens < whole.training.tokens
    a_token = [found.training.gpu_hours / found.training.tokens for found in (whole, ramped)]
    assert a_token[1] > a_token[0]  # fewer micro-batches to hide the bubble
    assert whole.training.days * 86400 == pytest.approx(100 * whole.step.total_seconds)


def test_energy_cost_and_checkpoints_are_what_is_given_times_what_is_planned() -> None:
    job = decoder(nodes=2, checkpoint={"every": 30})
    found = estimate(job, H100)
    assert found.training.cost is None and found.checkpoint.write_seconds is None
    hours = 16 * 100 * found.step.total_seconds / 3600
    assert found.training.gpu_hours == pytest.approx(hours)
    assert found.training.energy_kwh == pytest.approx(0.7 * hours)
    paid = estimate(job, H100, prices=Prices(per_gpu_hour=2.0, per_kwh=0.1, pue=1.25), storage_bandwidth=5e9)
    assert paid.training.energy_kwh == pytest.approx(1.25 * 0.7 * hours)
    with_hosts = estimate(job, H100, prices=Prices(pue=1.25, watts_per_gpu=1275.0))
    assert with_hosts.training.energy_kwh == pytest.approx(1.25 * 1.275 * hours)
    assert paid.training.cost == pytest.approx(2.0 * hours + 0.1 * paid.training.energy_kwh)
    assert paid.checkpoint.bytes == 12 * found.parameters
    assert paid.checkpoint.write_seconds == pytest.approx(12 * found.parameters / 5e9)
    assert (paid.checkpoint.files, paid.checkpoint.per_run) == (34, 4)


def test_a_stage_that_does_not_fit_is_named() -> None:
    found = estimate(decoder("gpt3-13b", parallel={"tensor": 1}), H100)
    assert not found.fits
    assert found.why_not.startswith("stage 0 needs ") and found.why_not.endswith("80.0 GB a plan may fill 76.0 GB")
    assert estimate(decoder("gpt3-125m"), H100).fits


def test_what_fills_a_gpu_to_the_brim_does_not_fit() -> None:
    job = decoder("gpt3-125m")
    most = estimate(job, H100).stages[0].memory.peak
    assert not estimate(job, replace(H100, memory_bytes=1.04 * most)).fits
    assert estimate(job, replace(H100, memory_bytes=1.06 * most)).fits


def test_a_tower_that_is_locked_has_no_moments_in_a_checkpoint() -> None:
    free, locked = (
        decoder("clip-vit-b-32", model={"lock_image": flag}, batch={"global_batch_size": 8192, "micro_batch_size": 256})
        for flag in (False, True)
    )
    whole, kept = (estimate(job, H100).checkpoint.bytes for job in (free, locked))
    image = 87_849_216  # ViT-B/32: 32 x 32 patches of 3 colours, 50 places, 12 layers of 768, a projection to 512
    assert whole - kept == 8 * image


def test_a_plan_of_1024_ranks_takes_milliseconds_and_no_torch() -> None:
    job = decoder("gpt3-175b", nodes=128, parallel={"tensor": 8, "pipeline": 16, "sequence": True})
    estimate(job, H100)
    times = []
    for _ in range(10):
        before = time.thread_time()
        estimate(job, H100)
        times.append(time.thread_time() - before)
    assert min(times) < 0.02
    code = (
        "import sys; from tests.launcher.plan_jobs import decoder; from launcher.plan.estimate import estimate; "
        "from launcher.plan.hardware import accelerator; estimate(decoder(), accelerator('h100')); "
        "import launcher.plan.published_runs; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
