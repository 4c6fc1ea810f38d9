"""The GPU table of the READMEs, with one command on a machine with a GPU and without network.

    python -m tests.benchmarks.gpu                              # all of it: results.json and results.md
    python -m tests.benchmarks.gpu --budget-minutes 12          # the most important rows first, then stop
    python -m tests.benchmarks.gpu --markdown results.json      # the tables of what has been measured
    python -m tests.benchmarks.gpu --toy                        # tiny models, whatever the device: that the path runs

Rows: the GPT-3 presets from 125M to 6.7B at sequence 2048 in bf16, CLIP with its true batch of 32,768, and the
contrastive loss beside the dense one. Each model's micro-batch, recomputation and compilation are searched for, from
the largest that the planner says fits; a row is the fastest that was found. Every try is a process of its own with a
deadline, so that one which runs out of memory or hangs is lost alone. Results are written after each: an interrupted
table goes on where it was, on the same machine with the same versions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.benchmarks.common import prepare_shards
from tests.benchmarks.gpu_jobs import TOY_SEQUENCE, Job, clip_jobs, gpt_jobs, loss_jobs, toy_jobs
from tests.benchmarks.gpu_search import DEADLINE, MEMORY, OK, Setting, telling
from tests.benchmarks.gpu_table import markdown

PACKAGES = ("torch", "triton", "megatron-core", "deepspeed")
OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|\bCUDA\b[^\n]{0,24}\bout of memory|cudaErrorMemoryAllocation"
    r"|CUBLAS_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)|CUDNN_STATUS_ALLOC_FAILED"
)
"""How torch, the driver, Triton and the libraries say it: cuBLAS and cuDNN where their workspaces find no room."""


def options_from(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line (or `words`) says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results.json"), help="results; Markdown beside them")
    parser.add_argument("--work", type=Path, help="folder of shards and runs; default: beside the results")
    parser.add_argument("--only", nargs="+", default=["gpt", "clip", "loss"], choices=["gpt", "clip", "loss"])
    parser.add_argument("--models", nargs="+", help="of these presets alone")
    parser.add_argument("--budget-minutes", type=float, help="begin nothing that would go beyond")
    parser.add_argument("--deadline", type=float, default=420.0, help="seconds that one try may take")
    parser.add_argument(
        "--first-only", action="store_true", help="one setting that works a row, no search for a better"
    )
    parser.add_argument("--toy", action="store_true", help="tiny models, whatever the device")
    parser.add_argument("--markdown", type=Path, metavar="RESULTS", help="print the tables of these results, and end")
    return parser.parse_args(words)


def main() -> int:
    options = options_from()
    if options.markdown:
        print(markdown(json.loads(options.markdown.read_text()) if options.markdown.exists() else {}), end="")
        return 0
    device = describe_device()
    if device["device"] == "cpu" and not options.toy:
        print("no GPU here: the table stays empty (--toy shows on a CPU that the path runs)", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else what runs would outlive us
    return Table(options, device).run()


def describe_device() -> dict[str, Any]:
    """What this machine is, asked in a process of its own: nothing here may hold memory on the device."""
    code = (
        "import json, torch; g = torch.cuda.is_available(); "
        "print(json.dumps({'device': torch.cuda.get_device_name() if g else 'cpu', 'cuda': torch.version.cuda, "
        "'memory_bytes': torch.cuda.get_device_properties(0).total_memory if g else None, "
        "'cudnn': torch.backends.cudnn.version() if g else None}))"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    found: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
    cuda, cudnn = found.pop("cuda"), found.pop("cudnn")
    versions = {"Python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    versions |= {name: str(value) for name, value in (("CUDA", cuda), ("cuDNN", cudnn)) if value}
    return {**found, "driver": driver(), "cores": len(os.sched_getaffinity(0)), "versions": versions}


def driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return asked.stdout.split("\n")[0].strip() or None
    return None


class Table:
    """One command's work: jobs in order of importance until they, or the budget, are through."""

    def __init__(self, options: argparse.Namespace, machine: dict[str, Any]) -> None:
        self.options, self.machine = options, machine
        self.begun = time.monotonic()
        self.work: Path = options.work or options.output.with_suffix(".work")
        self.results: dict[str, Any] = {"machine": machine, "gpt": {}, "clip": {}, "loss": {}}
        self.longest = 0.0

    def run(self) -> int:
        output: Path = self.options.output
        jobs = self._jobs()
        wanted, known = self.options.models or [], [job.name for job in jobs]
        if unknown := [name for name in wanted if name not in known]:
            print(f"--models {unknown[0]}: no such row; there are {', '.join(dict.fromkeys(known))}", file=sys.stderr)
            return 2
        jobs = [job for job in jobs if not wanted or job.name in wanted]
        if output.exists():
            found = json.loads(output.read_text())
            if found["machine"] != self.machine:
                print(f"{output} is of another machine or other versions: name another --output", file=sys.stderr)
                return 2
            self.results = found
        if any(job.kind == "gpt" and self._next(job) for job in jobs):
            self._shards()
        # First something for every row, then better settings, one a row and round.
        while self._round(jobs, lambda job: not self._worked(job)):
            pass
        while not self.options.first_only and self._round(jobs, self._worked):
            pass
        self._save()
        print(markdown(self.results), end="")
        return 0

    def _jobs(self) -> list[Job]:
        if self.options.toy:
            jobs = toy_jobs(self.work)
        else:
            memory = self.machine["memory_bytes"]
            jobs = [*gpt_jobs(self.work, memory), *loss_jobs(self.work), *clip_jobs(self.work, memory)]
        return [job for job in jobs if job.kind in self.options.only]

    def _shards(self) -> None:
        if not (self.work / "shards" / "mix.yaml").exists():
            self.work.mkdir(parents=True, exist_ok=True)
            toy = self.options.toy
            prepare_shards(self.work, sequence_length=TOY_SEQUENCE if toy else 2048, vocab_size=512 if toy else 4096)

    def _tries(self, job: Job) -> list[dict[str, Any]]:
        tries: list[dict[str, Any]] = self.results[job.kind].setdefault(job.name, [])
        return tries

    def _worked(self, job: Job) -> bool:
        return any(one["status"] == OK for one in self._tries(job))

    def _next(self, job: Job) -> Setting | None:
        return job.next_setting(telling(self._tries(job), self.options.deadline))

    def _round(self, jobs: list[Job], wanted: Callable[[Job], bool]) -> bool:
        """One try of each job that is wanted; whether there was any."""
        any_tried = False
        for job in jobs:
            setting = self._next(job) if wanted(job) else None
            if setting is not None and self._in_budget():
                any_tried = True
                self._try(job, setting)
        return any_tried

    def _in_budget(self) -> bool:
        """Whether another try as long as the longest one ends in time."""
        if self.options.budget_minutes is None:
            return True
        return time.monotonic() - self.begun + self.longest < 60 * self.options.budget_minutes

    def _try(self, job: Job, setting: Setting) -> None:
        print(f"{job.name}: {setting}", file=sys.stderr, flush=True)
        result = self.work / "result.json"
        result.parent.mkdir(parents=True, exist_ok=True)
        result.unlink(missing_ok=True)
        begun = time.monotonic()
        status, message = run_child(job.command(setting, result), self._patience(), self.work / "log.txt")
        taken = time.monotonic() - begun
        self.longest = max(self.longest, taken)
        found = job.figures(setting, json.loads(result.read_text())) if result.exists() else {"status": status}
        if found["status"] not in (OK, MEMORY):
            found["message"] = message
        date = datetime.now(UTC).isoformat(timespec="seconds")
        tried = {**vars(setting), **found, "date": date, "process_seconds": taken}
        self._tries(job).append(tried)
        self._save()
        print(f"{job.name}: {found['status']}, {taken:.0f} s {job.short(tried)}", file=sys.stderr, flush=True)

    def _patience(self) -> float:
        if self.options.budget_minutes is None:
            return float(self.options.deadline)
        left = 60 * self.options.budget_minutes - (time.monotonic() - self.begun)
        return max(1.0, min(self.options.deadline, left))

    def _save(self) -> None:
        """The results as a whole, or those before."""
        output: Path = self.options.output
        for file, text in (
            (output, json.dumps(self.results, indent=1) + "\n"),
            (output.with_suffix(".md"), markdown(self.results)),
        ):
            draft = file.with_name(f"{file.name}.draft")
            draft.write_text(text)
            draft.replace(file)


def run_child(command: list[str], patience: float, log: Path) -> tuple[str, str]:
    """Run a try to its end or its deadline (seconds): what became of it, and the last line that it said."""
    with log.open("w") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = child.wait(patience)
        except subprocess.TimeoutExpired:
            return DEADLINE, f"not done after {patience:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # whatever it has started as well
            child.wait()
    said = log.read_text(errors="replace").strip()
    if OUT_OF_MEMORY.search(said):
        return MEMORY, ""
    if code == -signal.SIGKILL:
        return MEMORY, "killed, as the kernel does where the host's memory is used up"
    return "failed", f"exit code {code}: {said.splitlines()[-1] if said else 'it said nothing'}"


if __name__ == "__main__":
    sys.exit(main())
