"""One configuration of the GPU table, in a process of its own: `python -m tests.benchmarks.gpu_step RECIPE RESULT`.

It is the product's worker, stopped where it says that it is alive: some steps to warm up, some timed (the device is
waited for at both ends only), some more under torch's profiler; then the result is written and the process ends without
a checkpoint. A device that runs out of memory is a result as well.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.gpu_search import MEMORY, OK
from tests.benchmarks.trace_shares import shares
from training import trainer, worker
from training.figures import device_name
from training.metrics import StepClock
from training.process import Heartbeat, RankEnvironment
from training.trace import PHASE, read_trace

FLOOR_STEPS = 3
"""What is timed at the least."""


class MarkedClock(StepClock):
    """The trainer's clock, whose phases a profile shows as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.around = lambda phase: torch.profiler.record_function(PHASE + phase)


class Watch(Heartbeat):
    """Times and profiles the steps between beats, and ends the process."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(None)
        self.options = options
        self.begun = self.warm_at = time.perf_counter()
        self.timed = 0
        self.first_step_seconds = 0.0
        self.profile: torch.profiler.profile | None = None
        self.profile_until = 0
        self.figures: dict[str, Any] = {}
        self.step = 0

    def beat(self, step: int) -> None:
        if step <= self.step:  # alive, but no step further
            return
        self.step = step
        warm = self.options.warmup
        if step == 1:
            wait()
            self.first_step_seconds = time.perf_counter() - self.begun
        if step < warm:
            return
        if step == warm:
            wait()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            self.warm_at = time.perf_counter()
            return
        if self.profile is None:
            self._time(step)
        elif step == self.profile_until:
            self._finish()

    def _time(self, step: int) -> None:
        """After a timed step: go on, or note the figures and begin to profile."""
        passed = time.perf_counter() - self.warm_at
        steps = step - self.options.warmup
        if steps < FLOOR_STEPS or (passed < self.options.seconds and steps < self.options.steps):
            return
        wait()
        seconds = (time.perf_counter() - self.warm_at) / steps
        self.figures = {"seconds_per_step": seconds, "timed_steps": steps, **memory()}
        self.figures["first_step_seconds"] = self.first_step_seconds
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.profile = torch.profiler.profile(activities=activities)
        self.profile_until = step + self.options.profile_steps
        self.profile.start()

    def _finish(self) -> None:
        assert self.profile is not None
        wait()
        self.profile.stop()
        with tempfile.TemporaryDirectory(prefix="trestle-profile-") as folder:
            file = Path(folder) / "trace.json"
            self.profile.export_chrome_trace(str(file))
            self.figures |= shares(read_trace(file)["traceEvents"])
        self.figures["profiled_steps"] = self.options.profile_steps
        finish(self.options.result, {"status": OK, **self.figures})


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory() -> dict[str, int | None]:
    """Peaks of the timed steps in bytes: of tensors, and of what the allocator took for them."""
    if not torch.cuda.is_available():
        return {"peak_bytes": None, "reserved_bytes": None}
    return {"peak_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved()}


def finish(file: Path, result: dict[str, Any]) -> None:
    """Write the result as a whole, and end: nothing that is left is worth an orderly end."""
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps({"device": device_name(), **result}))
    draft.replace(file)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--warmup", type=int, default=3, help="steps before the clock runs")
    parser.add_argument("--steps", type=int, default=20, help="steps to time at most, 3 at least")
    parser.add_argument("--seconds", type=float, default=15.0, help="begin no timed step after these")
    parser.add_argument("--profile-steps", type=int, default=1)
    options, overrides = parser.parse_known_args()
    watch = Watch(options)
    trainer.StepClock = MarkedClock  # type: ignore[misc]
    worker.Heartbeat = lambda _: watch  # type: ignore[assignment, misc]
    try:
        worker.work(options.recipe, overrides, RankEnvironment.read(os.environ))
    except torch.OutOfMemoryError as error:
        finish(options.result, {"status": MEMORY, "message": str(error).splitlines()[0]})
    raise SystemExit("the run ended before it had been measured")


if __name__ == "__main__":
    main()
