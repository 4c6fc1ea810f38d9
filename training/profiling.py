"""A few steps of a run under torch's profiler, on every rank: `python -m training.profiling PLACE`.

PLACE is what `trestle profile` has made: a folder with the recipe and what is asked for, which gets a trace of each
chosen rank and a summary of it. The run itself is only read; what a training writes beside its steps goes to a folder
that is thrown away.

Exit codes are those of `training.worker`.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from modeling import groups
from modeling.registry import family
from training import worker
from training.continuing import stream_of
from training.figures import memory_bytes
from training.finding import Finding
from training.inputs import inputs_of
from training.metrics import PatientEventLog
from training.process import RESUME_ME, Heartbeat, RankEnvironment, StopRequest, start_process_group
from training.profile_files import RECIPE, REQUEST, Request, summary_file, trace_file
from training.recipe import Recipe, check, load_recipe
from training.saving import RunCheckpoints
from training.shared_folder import check_shared
from training.trace import PHASE, read_trace, summary
from training.trainer import Parts, Trainer


def work(place: Path, _: list[str], environment: RankEnvironment) -> int:
    """Make and record the steps that PLACE asks for, as the rank that `environment` says."""
    heartbeat = Heartbeat(environment.heartbeat)
    request = Request.read(place / REQUEST)
    recipe = worker.with_vocabulary(load_recipe(place / RECIPE, []))
    away = recipe.checkpoint.remote
    recipe = replace(recipe, checkpoint=replace(recipe.checkpoint, remote=None))
    check(recipe, environment.world_size)
    worker.make_deterministic(recipe)
    store = start_process_group(environment, worker.GROUP_TIMEOUT_SECONDS)
    check_shared(place)
    with tempfile.TemporaryDirectory(prefix="trestle-profile-") as scratch:
        stop = StopRequest(store, heartbeat)
        trainer = _trainer(recipe, Path(request.run), Path(scratch), environment, heartbeat, stop)
        if environment.rank == 0:
            print(_beginning(trainer.position.step, away), flush=True)
        recorded = _record(trainer, request, place, environment)
        trainer.engine.close()
        dist.barrier()
        groups.stop_groups()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    dist.destroy_process_group()
    return 0 if recorded else RESUME_ME


def _trainer(
    recipe: Recipe, run: Path, scratch: Path, environment: RankEnvironment, heartbeat: Heartbeat, stop: StopRequest
) -> Trainer:
    """The run's trainer at its newest checkpoint, or at its initial weights, with `scratch` as its folder."""
    engine = worker.build_engine(recipe)
    checkpoint = Finding(run / "checkpoints", None, lambda event, **details: None).newest_left_alone()
    events = PatientEventLog(scratch / "events.jsonl")
    parts = Parts(
        recipe=recipe,
        folder=scratch,
        family=family(recipe.model.family),
        engine=engine,
        inputs=inputs_of(recipe),
        stream=stream_of(recipe, checkpoint),
        checkpoints=RunCheckpoints(scratch, recipe.run.name, recipe.checkpoint, events),
        events=events,
        heartbeat=heartbeat,
        stop=stop,
        environment=environment,
    )
    return Trainer(parts, checkpoint)


def _beginning(step: int, away: str | None) -> str:
    if step > 0:
        return f"from the checkpoint of step {step}"
    return "from initial weights" + (f": none is here, and those at {away} are not fetched" if away else "")


def _record(trainer: Trainer, request: Request, place: Path, environment: RankEnvironment) -> bool:
    """Warm up and record; trace and summary of a chosen rank in `place`. False when asked to stop before the end."""
    first = trainer.position.step + request.warmup + 1
    chosen = environment.rank in request.ranks
    trace = place / trace_file(environment.rank)
    if environment.rank == 0:
        print(f"{request.warmup} steps to warm up, and {request.steps} to record", flush=True)
    made, memory = 0, 0
    with _profiler(request, trace) if chosen else _nothing() as step_done:
        trainer.clock.around = _mark
        for made, _ in enumerate(trainer.steps(request.warmup + request.steps), 1):
            if made == request.warmup:
                _synchronize(reset=True)
            elif made == request.warmup + request.steps:
                _synchronize()
                memory = memory_bytes()  # before the trace is made sense of, which takes more than the steps
            step_done()
    if made < request.warmup + request.steps:
        return False
    if chosen:
        found = asdict(summary(read_trace(trace)))
        about = {
            "rank": environment.rank,
            "first_step": first,
            "peak_memory_bytes": memory,
            "trace": trace.name,
        }
        (place / summary_file(environment.rank)).write_text(json.dumps(about | found))
    return True


def _mark(phase: str) -> AbstractContextManager[object]:
    return torch.profiler.record_function(PHASE + phase)


@contextmanager
def _profiler(request: Request, trace: Path) -> Iterator[Any]:
    """Yields what is to be called after each step."""
    from torch.profiler import ProfilerActivity, profile, schedule

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(
        activities=activities,
        # The last step before the recorded ones is the profiler's own warm-up: its start costs time.
        schedule=schedule(wait=request.warmup - 1, warmup=1, active=request.steps, repeat=1),
        on_trace_ready=partial(_export, trace),
        record_shapes=request.shapes,
        profile_memory=request.memory,
        with_stack=request.stacks,
    ) as profiler:
        yield profiler.step


def _export(trace: Path, profiler: Any) -> None:
    profiler.export_chrome_trace(str(trace))


@contextmanager
def _nothing() -> Iterator[Any]:
    yield lambda: None


def _synchronize(*, reset: bool = False) -> None:
    """The recording begins and ends with an idle device: no kernel of another step is in it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1:], work))
