"""What a job comes to on so many accelerators: `estimate`. By formula, in milliseconds, without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from data_pipeline.batching import BatchSchedule, Duration
from launcher.dry_run import ON_TOP
from launcher.job import Job
from launcher.plan.compute import Device
from launcher.plan.efficiency import Efficiency, default_efficiency
from launcher.plan.figures import Checkpoint, Estimate, Flops, Prices, StageEstimate, StepTime, Training
from launcher.plan.habits import Habits, trestle
from launcher.plan.hardware import RESERVE, Accelerator
from launcher.plan.links import links
from launcher.plan.stages import all_stages, frozen, stands_for, whole_model
from launcher.plan.times import StageTimes, Step
from launcher.tables import size
from modeling.registry import Family, family
from training.footprint import width
from training.memory import RankMemory, rank_memory
from training.recipe import Recipe

__all__ = ["Estimate", "Prices", "estimate"]

PETAFLOP_S_DAY = 8.64e19
"""Operations (Brown et al. 2020, table D.1's caption)."""
_BATCH_LOSS = 0.30
"""Of the peak in fp32: 218 ms for 32,768 pairs of 512 features on an H100 (tests/benchmarks/README.md)."""
OWN_RUNS = "of Trestle itself: three CLIP runs on an H100, planned 16 to 24 % too fast, measured before two mends"
"""What `launcher.plan.published` finds."""
_STATE_BYTES, _FROZEN_BYTES = 12, 4
"""Of a parameter in a checkpoint: its master weight and two moments; of one that is not trained the weight alone."""


def estimate(
    job: Job,
    accelerator: Accelerator,
    *,
    prices: Prices | None = None,
    efficiency: Efficiency | None = None,
    habits: Habits | None = None,
    storage_bandwidth: float | None = None,
    every_stage: bool = True,
) -> Estimate:
    """Of a job that has been checked and whose vocabulary is known.

    storage_bandwidth: bytes a second, all ranks together.
    every_stage: False gives stages between the first and the last the memory of the second, which is the largest of
        theirs: faster, for a search.

    Raises ModelError while the vocabulary is not known.
    """
    recipe, parallel, world = job.recipe, job.recipe.parallel, job.world_size
    training, batch, kind = recipe.training, recipe.batch, family(recipe.model.family)
    replicas = parallel.data_parallel(world)
    micro_batches = -(-batch.global_batch_size // (replicas * batch.micro_batch_size))
    efficiency = efficiency or default_efficiency(accelerator)
    habits = habits or trestle(training.compile, parallel.sequence)
    times, at = _times(job, kind, Device(accelerator, efficiency, habits, width(training.precision)))
    step = at(batch.global_batch_size)
    flops = _flops(recipe, kind, replicas, micro_batches)
    tokens = batch.global_batch_size * recipe.model.sequence_length
    attainable = world * accelerator.peak_flops * step.total_seconds
    stages = tuple(_stages(recipe, world, times, every_stage))
    why_not = _why_not(stages, accelerator)
    whole = _training(recipe, at, flops, world, accelerator, prices or Prices())
    return Estimate(
        name=recipe.run.name,
        family=kind.name,
        nodes=job.cluster.nodes,
        gpus_per_node=job.cluster.ranks_per_node,
        world_size=world,
        accelerator=accelerator,
        parallel=parallel,
        replicas=replicas,
        sequence_length=recipe.model.sequence_length,
        micro_batch_size=batch.micro_batch_size,
        micro_batches=micro_batches,
        global_batch_size=batch.global_batch_size,
        recompute=training.recompute,
        precision=training.precision,
        compiled=training.compile,
        couples_batch=kind.couples_batch,
        parameters=kind.parameter_count(recipe.model),
        flops=flops,
        stages=stages,
        step=step,
        mfu=(flops.matmul + flops.attention) / attainable,
        mfu_causal=(flops.matmul + flops.attention_causal) / attainable,
        hfu=flops.hardware / attainable,
        tokens_per_second=tokens / step.total_seconds,
        tokens_per_day=86400 * tokens / step.total_seconds,
        training=whole,
        checkpoint=_checkpoint(recipe, kind, world, whole.steps, storage_bandwidth),
        fits=not why_not,
        why_not=why_not,
        assumptions=_assumptions(accelerator, efficiency, habits, recipe),
        prices=prices or Prices(),
    )


def _times(job: Job, kind: Family, device: Device) -> tuple[Sequence[StageTimes], Callable[[int], StepTime]]:
    """Of each stage, and of a step as a function of its samples."""
    recipe, parallel, accelerator = job.recipe, job.recipe.parallel, device.accelerator
    replicas = parallel.data_parallel(job.world_size)
    ways = links(parallel, replicas, job.cluster.ranks_per_node, accelerator, device.efficiency)
    stages = all_stages(recipe, device, ways)
    whole = Step(stages, parallel, replicas, recipe.training.precision, device, ways, kind.couples_batch)

    def at(samples: int) -> StepTime:
        loss = kind.batch_loss_flops(recipe.model, samples, replicas) if kind.batch_loss_flops else 0.0
        count = -(-samples // (replicas * recipe.batch.micro_batch_size))
        return whole.seconds(count, loss / (_BATCH_LOSS * accelerator.fp32_flops))

    return stages, at


def _stages(recipe: Recipe, world: int, times: Sequence[StageTimes], every_stage: bool) -> Iterator[StageEstimate]:
    pipeline, known = recipe.parallel.pipeline, dict[int, RankMemory]()
    for number, one in enumerate(times):
        asked = number if every_stage else stands_for(number, pipeline)
        memory = known[asked] if asked in known else known.setdefault(asked, rank_memory(recipe, world, asked))
        yield _stage(recipe, number, one, memory)


def _stage(recipe: Recipe, number: int, times: StageTimes, memory: RankMemory) -> StageEstimate:
    return StageEstimate(
        stage=number,
        parameters=times.numel,
        memory=memory,
        forward_seconds=times.compute.forward,
        backward_seconds=times.compute.backward,
        recompute_seconds=times.compute.recompute,
        tensor_seconds=times.tensor,
        tensor_forward_seconds=times.tensor_forward,
        handover_seconds=times.handover if recipe.parallel.pipeline > 1 else 0.0,
    )


def _flops(recipe: Recipe, kind: Family, replicas: int, micro_batches: int) -> Flops:
    """Of a step: from the whole model as one rank would compute a sample, times the samples."""
    samples = recipe.batch.global_batch_size
    tokens = samples * recipe.model.sequence_length
    work = whole_model(recipe)
    attention, causal = (work.attention_training(causal=flag) for flag in (False, True))
    per_token = kind.flops_per_token(recipe.model)
    matmul = per_token * tokens - attention * samples
    hardware = work.training + work.recomputed + work.attention_run
    if kind.couples_batch and micro_batches > 1:
        hardware += work.forward + work.attention_run_forward
    loss = kind.batch_loss_flops(recipe.model, samples, replicas) * replicas if kind.batch_loss_flops else 0.0
    return Flops(
        matmul=matmul,
        products=work.training * samples,
        not_products=matmul - work.training * samples,
        attention=attention * samples,
        attention_causal=causal * samples,
        hardware=hardware * samples + loss,
        per_token=per_token,
        per_token_causal=per_token - (attention - causal) * samples / tokens,
    )


def _steps(recipe: Recipe, schedule: BatchSchedule) -> int:
    length = Duration.parse(recipe.training.steps)
    return length.steps if length.steps is not None else schedule.step_of_tokens(length.tokens or 0)


def _seconds(schedule: BatchSchedule, steps: int, at: Callable[[int], StepTime]) -> float:
    """Of all steps; with a ramp those of its smaller batches are shorter."""
    starts = schedule.stages()
    ends = [first for first, _ in starts[1:]] + [steps]
    return sum(
        (min(end, steps) - first) * at(samples).total_seconds
        for (first, samples), end in zip(starts, ends, strict=True)
        if min(end, steps) > first
    )


def _training(
    recipe: Recipe,
    at: Callable[[int], StepTime],
    flops: Flops,
    world: int,
    accelerator: Accelerator,
    prices: Prices,
) -> Training:
    length = recipe.model.sequence_length
    schedule = BatchSchedule(recipe.batch, length)
    steps = _steps(recipe, schedule)
    seconds = _seconds(schedule, steps, at)
    tokens = schedule.start(steps) * length
    hours = world * seconds / 3600
    energy = hours * (prices.watts_per_gpu or accelerator.watts) / 1000 * prices.pue
    asked = [(prices.per_gpu_hour, hours), (prices.per_kwh, energy)]
    known = [price * amount for price, amount in asked if price is not None]
    per_token = flops.matmul / (recipe.batch.global_batch_size * length)
    return Training(
        tokens=tokens,
        steps=steps,
        days=seconds / 86400,
        petaflop_s_days=per_token * tokens / PETAFLOP_S_DAY,
        gpu_hours=hours,
        energy_kwh=energy,
        cost=sum(known) if known else None,
    )


def _checkpoint(recipe: Recipe, kind: Family, world: int, steps: int, storage: float | None) -> Checkpoint:
    still = frozen(recipe.model)
    bytes_ = _STATE_BYTES * (kind.parameter_count(recipe.model) - still) + _FROZEN_BYTES * still
    every = recipe.checkpoint.every
    return Checkpoint(
        bytes=bytes_,
        files=2 * world + 2,  # tensors and records of each rank, the manifest and its checksum
        write_seconds=None if storage is None else bytes_ / storage,
        per_run=(-(-steps // every) if every else 1),
    )


def _why_not(stages: tuple[StageEstimate, ...], accelerator: Accelerator) -> str:
    fullest = max(stages, key=lambda stage: stage.memory.peak)
    if fullest.memory.peak <= accelerator.usable_bytes:
        return ""
    return (
        f"stage {fullest.stage} needs {size(fullest.memory.peak)} a rank, and of {accelerator.name}'s "
        f"{size(accelerator.memory_bytes)} a plan may fill {size(accelerator.usable_bytes)}"
    )


def _assumptions(accelerator: Accelerator, efficiency: Efficiency, habits: Habits, recipe: Recipe) -> tuple[str, ...]:
    found = [
        f"accelerator: {accelerator.source}",
        f"efficiency: {efficiency.source}",
    ]
    none_here = "" if efficiency.sustained_gpu == accelerator.name else f"; none of them on {accelerator.name}"
    found.append(
        f"of these rates a whole step keeps up {efficiency.sustained:.0%} ({efficiency.sustained_from}{none_here}); "
        "reading data, validation, checkpoints that hold up training, failures and restarts are not counted"
    )
    found.append(
        f"memory: a step's fullest moment by formula, within 5 % of the live tensors of real steps; {ON_TOP}, "
        f"for which {100 * RESERVE:.0f} % of a GPU's memory is kept back"
    )
    if habits.source:
        found.append(f"overlap: {habits.source}")
    found.append(OWN_RUNS)
    attention = whole_model(recipe).attention
    if any(one.masked for one in attention):
        found.append(
            "attention with bands or document masks computes all pairs, in torch's kernel for masks at "
            f"{efficiency.masked_attention:.1%} of the peak, an estimate unless --efficiency gives it"
        )
    if any(one.grouped and (one.masked or recipe.training.precision == "fp32") for one in attention):
        found.append(
            "grouped queries with a mask or in fp32 have no fused kernel: their scores are written out, which the time "
            "counts and the memory of a rank does not"
        )
    if recipe.parallel.offload_optimizer:
        found.append("an offloaded optimizer's own arithmetic on the host is not counted")
    return tuple(found)
