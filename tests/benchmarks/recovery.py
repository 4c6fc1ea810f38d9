"""How long a run stands still when one of its ranks is killed: until the launcher knows, and until the next optimizer
step is done; with a standby (`cluster.standby`), and without.

    python -m tests.benchmarks.recovery             # five kills with, five without, minutes
    python -m tests.benchmarks.recovery --quick     # one with

`trestle train` runs a tiny decoder on 2 ranks under its private Ray, with a checkpoint every few steps. Once a
checkpoint is in place (and the standby ready) a rank gets SIGKILL. All in seconds from the kill: the `failed` event's
time without the end of the other rank (detected) and with it, the `restarted` event (new ranks run), the `resumed`
event (the model is built, the checkpoint verified and chosen), the first step that the restarted ranks report (they
report every one).
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
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.common import machine, middle_and_spread, prepare_shards, print_table
from training.metrics import read_events
from training.standby import NAME

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


PARTS = ("detected", "the other rank ended", "new ranks run", "resuming", "next optimizer step, verified load")


class Run:
    """A run under `trestle train`."""

    def __init__(self, folder: Path, *, standby: bool) -> None:
        (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
        self.folder = folder / "runs" / "run"
        self._standby = standby
        self._out = open(folder / "out.log", "w+")  # noqa: SIM115  (closed in stop)
        command = [sys.executable, "-m", "launcher", "train", str(folder / "recipe.yaml")]
        self._process = subprocess.Popen(
            [*command, "--cluster.standby", str(standby).lower()],
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

    def processes(self) -> list[int]:
        """Process ids of this run's ranks and of its standby."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):  # it has ended meanwhile
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    if b"training.worker" in words and str(self.folder.absolute()).encode() in words:
                        found.append(int(entry.name))
        return found

    def rank(self, number: int) -> int:
        """Process id of a rank: the process that prints to its log."""
        log = self.folder.absolute() / "logs" / f"rank-{number:05d}.log"
        for pid in self.processes():
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/1") == str(log):
                    return pid
        raise RuntimeError(f"rank {number} does not run")

    def standby_is_ready(self) -> bool:
        """Whether there is a process from which ranks can be forked."""
        for pid in self.processes():
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == NAME:
                    return True
        return False

    def wait_until(self, ready: Callable[[], object]) -> float:
        """The time (seconds since the epoch) at which `ready` was first seen true."""
        deadline = time.time() + PATIENCE_SECONDS
        while not ready():
            if self._process.poll() is not None or time.time() > deadline:
                self._out.seek(0)
                raise RuntimeError(f"the run ended or made no progress; it said:\n{self._out.read()[-3000:]}")
            time.sleep(0.01)  # a file that another process writes
        return time.time()

    def kill_a_rank(self) -> tuple[float, ...]:
        """Seconds from SIGKILL of a rank to each of `PARTS`."""
        self.wait_until(lambda: self.events("checkpointed"))
        if self._standby and not self.standby_is_ready():
            # Its imports leave the cores to the ranks; here nobody minds if these wait for it instead.
            ranks = [self.rank(number) for number in range(2)]
            for pid in ranks:
                os.kill(pid, signal.SIGSTOP)
            self.wait_until(self.standby_is_ready)
            for pid in ranks:
                os.kill(pid, signal.SIGCONT)
        before = len(self.events("checkpointed"))
        self.wait_until(lambda: len(self.events("checkpointed")) > before)
        failures = len(self.events("failed"))
        killed = time.time()
        os.kill(self.rank(1), signal.SIGKILL)
        self.wait_until(lambda: len(self.events("resumed")) > failures)
        recovered = self.wait_until(lambda: self.stepped_after(failures + 1))
        events = [self.events(name)[-1] for name in ("failed", "restarted", "resumed")]
        ended, restarted, resumed = (datetime.fromisoformat(event["time"]).timestamp() for event in events)
        detected = ended - events[0]["teardown_seconds"]
        return tuple(moment - killed for moment in (detected, ended, restarted, resumed, recovered))

    def stop(self) -> None:
        """SIGINT, as Ctrl-C: the run saves and ends, and leaves no process behind."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(90)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._out.close()


def measure(kills: int, *, standby: bool) -> list[tuple[float, ...]]:
    """What `kill_a_rank` measures in a run of its own, so many times."""
    with tempfile.TemporaryDirectory(prefix="trestle-recovery-") as folder:
        prepare_shards(Path(folder), sequence_length=64, vocab_size=500)
        run = Run(Path(folder), standby=standby)
        try:
            return [run.kill_a_rank() for _ in range(kills)]
        finally:
            run.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="with a standby, and as many without")
    parser.add_argument("--quick", action="store_true", help="one with, only to see that it runs")
    options = parser.parse_args()
    kills = 1 if options.quick else options.kills
    warm = measure(kills, standby=True)
    cold = [] if options.quick else measure(kills, standby=False)
    print(machine("torch", "deepspeed", "ray"))
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(f"load over 1, 5, 15 minutes: {load}")
    print(f"2 ranks x 1 thread, {kills} kills each; median (least-greatest), seconds from SIGKILL\n")
    rows = [
        [f"Trestle, {part}", *(middle_and_spread([kill[i] for kill in side]) if side else "" for side in (warm, cold))]
        for i, part in enumerate(PARTS)
    ]
    rows += [[f"measured elsewhere: {name}, next step", "", seconds] for name, seconds in PUBLISHED]
    print_table(["what", "with a standby", "without"], rows)
    print("\nFigures measured elsewhere are of another machine, with 2 CPU cores, tiny models and no verified load.")


if __name__ == "__main__":
    main()
