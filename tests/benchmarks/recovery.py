"""A rank is killed: how long until the supervisor knows, and until the next optimizer step is done.

    python -m tests.benchmarks.recovery             # two kills in each of two runs, minutes
    python -m tests.benchmarks.recovery --quick     # one kill

`trestle train` runs a tiny decoder on 2 ranks under its private Ray, with a checkpoint every few steps. Once a
checkpoint is in place a rank gets SIGKILL. Detected: the `failed` event's time; recovered: the first step that the
restarted ranks report (they report every one), which follows a verified load. Both in seconds from the kill.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.common import machine, middle_and_spread, prepare_shards, print_table
from training.metrics import read_events

PATIENCE_SECONDS = 180.0
PUBLISHED = [("torchrun, bare ranks", "2.1"), ("Ray Train v2", "9.6"), ("Ray Train v2, loaded machine", "17-22")]
"""Kill to next step, measured elsewhere, before Trestle was written: for scale only."""

RECIPE = """
run: {{directory: {folder}/runs, name: run}}
model: {{num_layers: 2, hidden_size: 64, num_attention_heads: 2, sequence_length: 64}}
data: {{mix: [{{shards: {folder}/shards/text}}]}}
batch: {{global_batch_size: 4, micro_batch_size: 2}}
training: {{steps: 1000000, log_every: 1, precision: bf16}}
checkpoint: {{every: 20, keep: 2}}
cluster: {{ranks_per_node: 2, max_restarts: 10}}
"""


class Run:
    """A run under `trestle train`."""

    def __init__(self, folder: Path) -> None:
        (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
        self.folder = folder / "runs" / "run"
        self._out = open(folder / "out.log", "w+")  # noqa: SIM115  (closed in stop)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "launcher", "train", str(folder / "recipe.yaml")],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=self._out,
            stderr=subprocess.STDOUT,
        )

    def events(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        return [event for event in read_events(path) if event["event"] == name] if path.exists() else []

    def stepped_after(self, resumptions: int) -> bool:
        """Whether rank 0 has resumed so many times, and has told of a step since."""
        log = (self.folder / "logs" / "rank-00000.log").read_text().split("resuming from step")
        return len(log) > resumptions and "step " in log[-1]

    def ranks(self) -> list[int]:
        """Process ids of this run's ranks, in the order in which they were started."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:  # it has ended meanwhile
                    continue
                if b"training.worker" in words and str(self.folder.absolute()).encode() in words:
                    found.append(int(entry.name))
        return sorted(found)

    def wait_until(self, ready: Callable[[], bool]) -> float:
        """The time (seconds since the epoch) at which `ready` was first seen true."""
        deadline = time.time() + PATIENCE_SECONDS
        while not ready():
            if self._process.poll() is not None or time.time() > deadline:
                self._out.seek(0)
                raise RuntimeError(f"the run ended or made no progress; it said:\n{self._out.read()[-3000:]}")
            time.sleep(0.01)  # a file that another process writes
        return time.time()

    def kill_a_rank(self) -> tuple[float, float]:
        """Seconds from SIGKILL of a rank to its detection and to the next optimizer step."""
        before = len(self.events("checkpointed"))
        self.wait_until(lambda: len(self.events("checkpointed")) > before)
        failures = len(self.events("failed"))
        killed = time.time()
        os.kill(self.ranks()[-1], signal.SIGKILL)
        self.wait_until(lambda: len(self.events("failed")) > failures)
        detected = datetime.fromisoformat(self.events("failed")[-1]["time"]).timestamp() - killed
        recovered = self.wait_until(lambda: self.stepped_after(failures + 1)) - killed
        return detected, recovered

    def stop(self) -> None:
        """SIGINT, as Ctrl-C: the run saves and ends, and leaves no process behind."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(90)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._out.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--kills", type=int, default=2, help="in each run")
    parser.add_argument("--quick", action="store_true", help="one kill, only to see that it runs")
    options = parser.parse_args()
    runs, kills = (1, 1) if options.quick else (options.runs, options.kills)
    found: list[tuple[float, float]] = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="trestle-recovery-") as folder:
            prepare_shards(Path(folder), sequence_length=64, vocab_size=500)
            run = Run(Path(folder))
            try:
                found += [run.kill_a_rank() for _ in range(kills)]
            finally:
                run.stop()
    print(machine("torch", "deepspeed", "ray"))
    print(f"2 ranks x 1 thread, {len(found)} kills; median (least-greatest), seconds from SIGKILL\n")
    rows = [
        ["measured here: Trestle, detected", middle_and_spread([detected for detected, _ in found])],
        ["measured here: Trestle, next optimizer step, verified load", middle_and_spread([step for _, step in found])],
    ]
    rows += [[f"measured elsewhere: {name}, next step", seconds] for name, seconds in PUBLISHED]
    print_table(["what", "seconds"], rows)
    print("\nFigures measured elsewhere are of another machine, with 2 CPU cores, tiny models and no verified load.")


if __name__ == "__main__":
    main()
