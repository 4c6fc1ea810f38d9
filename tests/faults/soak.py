"""A run that suffers one fault after the other, and must end with the weights of a run that suffered none.

    python -m tests.faults.soak --faults 100 --seed 1        # or: make soak

Two nodes on this machine, one data-parallel rank on each, ZeRO 1, bf16. Prints a line for each fault, a table of what
they cost, and the verdict; exit code 0 if figures, weights and moments are equal to the last bit. --minutes ends it
early: the faults that have not begun by then are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.tables import table
from tests.faults import schedule as faults
from tests.faults.conftest import RECIPE
from tests.faults.machines import HEAD, Machines, machines
from tests.faults.run_files import RunFiles, assert_same_run
from tests.faults.running import TORCHRUN, TRESTLE, Program, started
from tests.faults.schedule import Fault, schedule, steps_for
from training.checkpoint import candidates

NODES = ("127.0.0.3", "127.0.0.4")
GAP = 24
"""Steps between faults, on average: six checkpoints."""
PATIENCE = 30.0
"""Seconds until a rank that makes no progress counts as hung."""
DELAY = 2.0
"""Seconds that a rank is held up without being hung."""
SECONDS_PER_FAULT = 120.0
"""Longer than any recovery takes on a busy machine: what the deadline of a run is made of."""
ENOUGH_FOR_LOGS_ONLY = 200_000
"""Bytes that a file of a rank with a full disk may have: below its part of a checkpoint, above its log."""


@dataclass(frozen=True)
class Cost:
    """What a fault has cost: seconds until the run was past the step at which it happened, and attempts."""

    step: int
    kind: str
    rank: int
    seconds: float
    restarts: int


class Sufferer:
    """A run under `trestle train` on two nodes, and the means to hurt it."""

    def __init__(self, run: Program, ray: Machines) -> None:
        self._run = run
        self._ray = ray
        self._files = run.files
        self._logs = run.files.path / "logs"

    def suffer(self, fault: Fault) -> Cost:
        """Wait for the fault's step, let it happen, and wait until the run is past it."""
        self._run.wait_for_step(fault.step)
        victim = self._rank(fault.rank)
        step, restarts = self._files.last_step(), self._restarts()
        began = time.monotonic()
        {
            faults.KILL_RANK: self._kill_rank,
            faults.KILL_AGENT: self._kill_agent,
            faults.KILL_RAYLET: self._kill_raylet,
            faults.STOP_RANK: self._stop_rank,
            faults.DELAY_RANK: self._delay_rank,
            faults.FILL_DISK: self._fill_disk,
            faults.FLIP_BYTES: self._flip_bytes,
            faults.DROP_STORAGE: self._drop_storage,
        }[fault.kind](victim, fault.rank)
        if fault.kind not in faults.HARMLESS:
            self._run.wait_for(lambda: self._restarts() > restarts, f"restart after: {fault}")
        self._run.wait_for_step(step + 1)
        return Cost(step, fault.kind, fault.rank, time.monotonic() - began, self._restarts() - restarts)

    # -- the faults -------------------------------------------------------------------------------------------------

    def _kill_rank(self, victim: int, rank: int) -> None:
        os.kill(victim, signal.SIGKILL)

    def _kill_agent(self, victim: int, rank: int) -> None:
        os.kill(parent_of(victim), signal.SIGKILL)

    def _kill_raylet(self, victim: int, rank: int) -> None:
        self._ray.kill(NODES[rank])
        self._ray.add(NODES[rank])

    def _stop_rank(self, victim: int, rank: int) -> None:
        os.kill(victim, signal.SIGSTOP)

    def _delay_rank(self, victim: int, rank: int) -> None:
        os.kill(victim, signal.SIGSTOP)
        time.sleep(DELAY)  # the fault itself: a machine that is busy with something else
        os.kill(victim, signal.SIGCONT)

    def _fill_disk(self, victim: int, rank: int) -> None:
        with self._until_a_save_fails():
            _, hard = resource.prlimit(victim, resource.RLIMIT_FSIZE)
            resource.prlimit(victim, resource.RLIMIT_FSIZE, (ENOUGH_FOR_LOGS_ONLY, hard))
        resource.prlimit(victim, resource.RLIMIT_FSIZE, (hard, hard))

    def _flip_bytes(self, victim: int, rank: int) -> None:
        """In the newest checkpoint, which the next attempt would start from."""
        os.kill(victim, signal.SIGKILL)
        data = candidates(self._files.checkpoints)[0] / f"rank-{rank:05d}.safetensors"
        with data.open("r+b") as file:
            file.seek(data.stat().st_size * 2 // 3)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 0b100]))

    def _drop_storage(self, victim: int, rank: int) -> None:
        """The folder of the checkpoints is gone, and nothing can be put in its place, until a save has failed."""
        folder = self._files.checkpoints
        elsewhere = folder.with_name("unreachable")
        with self._until_a_save_fails():
            folder.rename(elsewhere)
            folder.touch()
        time.sleep(2)  # the event is rank 0's: the fault is to last until the other ranks have met it, too
        folder.unlink()
        elsewhere.rename(folder)

    @contextmanager
    def _until_a_save_fails(self) -> Iterator[None]:
        failed = len(self._files.events("checkpoint_failed"))
        yield
        self._run.wait_for_event("checkpoint_failed", failed + 1)

    # -- the run ----------------------------------------------------------------------------------------------------

    def _restarts(self) -> int:
        return len(self._files.events("restarted"))

    def _rank(self, rank: int) -> int:
        """The process of a rank, known by the log that it writes to."""
        log = str(self._logs / f"rank-{rank:05d}.log")
        found: list[int] = []

        def look() -> bool:
            found[:] = [pid for pid in processes() if output_of(pid) == log and output_of(parent_of(pid)) != log]
            return len(found) == 1

        self._run.wait_for(look, f"process of rank {rank}")
        return found[0]


def processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def parent_of(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("PPid:"):
                return int(line.split()[1])
    return 0


def output_of(pid: int) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/fd/1")
    return ""


def soak(
    where: Path, plan: Sequence[Fault], steps: int, say: Callable[[str], None], seconds: float
) -> tuple[list[Cost], RunFiles]:
    """Train in the folder `where`, with its shards and recipe, through all faults of a plan, or as many as begin within
    so many seconds. Raises AssertionError.
    """
    until = time.monotonic() + seconds
    with machines(NODES) as ray:
        cluster = {"address": ray.address, "node_address": HEAD, "nodes": 2, "ranks_per_node": 1, "max_restarts": 8}
        cluster |= {"heartbeat_seconds": PATIENCE, "node_return_seconds": 120, "min_nodes": 2}
        options = [f"--cluster.{key}={value}" for key, value in cluster.items()]
        command = [*TRESTLE, "train", "recipe.yaml", "--run.name=soak", f"--training.steps={steps}", *options]
        deadline = 120.0 + SECONDS_PER_FAULT * len(plan)
        costs: list[Cost] = []
        with started(command, where, where / "runs" / "soak", deadline=deadline, more=ray.environment) as run:
            sufferer = Sufferer(run, ray)
            for number, fault in enumerate(plan):
                if time.monotonic() > until:
                    say(f"the time is up after {number} faults; the run ends in peace")
                    break
                costs.append(cost := sufferer.suffer(fault))
                again = f"{cost.restarts} restart{'' if cost.restarts == 1 else 's'}" if cost.restarts else "trained on"
                say(
                    f"fault {number + 1}/{len(plan)} at step {cost.step}: {cost.kind} (rank {cost.rank}): {again}, "
                    f"{cost.seconds:.1f} s until past it"
                )
            run.end(0)
    return costs, run.files


def undisturbed(where: Path, steps: int) -> RunFiles:
    """The same ranks from the first step to the last, without Ray and without faults."""
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=2", "-m", "training.worker", "recipe.yaml"]
    command += ["--run.name=calm", f"--training.steps={steps}"]
    with started(command, where, where / "runs" / "calm", deadline=120.0 + steps) as run:
        run.end(0)
    return run.files


def summary(costs: Sequence[Cost], wall: float, files: RunFiles) -> str:
    """What each kind of fault has cost, as a table, and the run's own account of its time."""
    rows: list[tuple[object, ...]] = []
    for kind in faults.KINDS:
        seconds = [cost.seconds for cost in costs if cost.kind == kind]
        if seconds:
            restarts = sum(cost.restarts for cost in costs if cost.kind == kind)
            rows.append((kind, len(seconds), restarts, statistics.median(seconds), max(seconds)))
    shown = table(("fault", "times", "restarts", "median s", "longest s"), rows)
    useful = sum(line["step_seconds"] for line in files.figures())
    own = files.figures()[-1].get("goodput")
    useful_share = f"{useful / wall:.0%}" + ("" if own is None else f"; goodput by its own account {own:.0%}")
    damaged = len(files.events("checkpoint_damaged"))
    return (
        f"{shown}\n{len(costs)} faults in {wall:.0f} s; steps that count took {useful:.0f} s ({useful_share}); "
        f"{damaged} damaged checkpoint{'' if damaged == 1 else 's'} set aside"
    )


def prepare(where: Path) -> None:
    """A recipe and its shards."""
    (where / "recipe.yaml").write_text(RECIPE)
    with started([*TRESTLE, "prepare", "recipe.yaml"], where, where) as preparing:
        preparing.end(0)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600, help="no fault begins later than this")
    parser.add_argument("--gap", type=int, default=GAP, help="steps between faults, on average")
    parser.add_argument("--where", type=Path, default=None, help="a folder with recipe.yaml and shards; made if null")
    parser.add_argument("--result", type=Path, default=None, help="write faults and verdict here, as JSON")
    asked = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # everything started is ended, too
    where = asked.where or Path(tempfile.mkdtemp(prefix="soak-"))
    if asked.where is None:
        prepare(where)
    steps = steps_for(asked.faults, asked.gap)
    plan = schedule(asked.seed, asked.faults, gap=asked.gap, ranks=len(NODES))
    print(f"seed {asked.seed}: {asked.faults} faults in {steps} steps, in {where}", flush=True)
    calm = undisturbed(where, steps)
    began = time.monotonic()
    costs, files = soak(where, plan, steps, lambda line: print(line, flush=True), 60 * asked.minutes)
    wall = time.monotonic() - began
    print(summary(costs, wall, files))
    try:
        assert_same_run(files, calm)
        same = True
    except AssertionError as difference:
        same = False
        print(difference)
    print("weights, moments and figures: " + ("equal to the bit" if same else "NOT those of the undisturbed run"))
    if asked.result is not None:
        asked.result.write_text(json.dumps({"same": same, "faults": [asdict(c) for c in costs], "seconds": wall}))
    if asked.where is None and same:
        shutil.rmtree(where)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
