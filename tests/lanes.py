"""All tests, several rooms at a time: `python -m tests.lanes [PYTEST-OPTIONS]`.

Most tests start processes and wait for them, or keep one core busy: one room after the other leaves much of a machine
idle. Each of the rooms that take long is a pytest of its own, with its own fixtures; the others share one. What it
prints is shown when it has ended; the last line sums up, in pytest's own words.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALONE = ("faults", "distributed", "launcher", "cluster", "data_pipeline")
"""Rooms that take long; the longest begins first."""
LANES = min(3, os.cpu_count() or 1)
"""Pytests at a time: each may hold three ranks and a Ray of its own in memory."""
NO_TESTS = 5
"""Pytest's exit code where the options leave it without a test."""
FAILED = re.compile(r"^(?:FAILED|ERROR) .*", re.MULTILINE)
KINDS = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warning", "error")
COUNT = re.compile(rf"(\d+) ({'|'.join(KINDS)})s?\b")


@dataclass(frozen=True)
class Ended:
    """What has become of a pytest."""

    rooms: list[str]
    exit_code: int
    seconds: float
    output: str


def shares() -> list[list[str]]:
    """Every folder with tests, and tests beside them, by the pytest that runs it, in the order in which they begin."""
    tests = ROOT / "tests"
    found = sorted(path.parent.name for path in tests.glob("*/__init__.py")) + [p.name for p in tests.glob("test_*.py")]
    return [*([name] for name in ALONE), [name for name in found if name not in ALONE]]


def work(rooms: list[str], options: list[str]) -> Ended:
    """Run some rooms' tests."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *(f"tests/{name}" for name in rooms), *options],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    code = {NO_TESTS: 0}.get(done.returncode, done.returncode if done.returncode >= 0 else 1)
    return Ended(rooms, code, time.monotonic() - begun, done.stdout.decode(errors="replace"))


def summed_up(ended: list[Ended], seconds: float) -> str:
    """How long each pytest took, what failed in them, and the sum of their last lines."""
    counts: Counter[str] = Counter()
    lines = []
    for one in sorted(ended, key=lambda one: -one.seconds):
        code = f", exit code {one.exit_code}" if one.exit_code else ""
        lines.append(f"{one.seconds:6.0f} s  {' '.join(one.rooms)}{code}")
        last = one.output.strip().rpartition("\n")[2]
        counts.update({kind: int(count) for count, kind in COUNT.findall(last)})
    lines += [line for one in ended for line in FAILED.findall(one.output)]
    said = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if kind in counts)
    return "\n".join([*lines, f"========== {said} in {seconds:.2f}s =========="])


def main(options: list[str]) -> int:
    """The exit code of the pytest that ended worst."""
    begun = time.monotonic()
    ended = []
    with ThreadPoolExecutor(LANES) as lanes:
        for future in as_completed([lanes.submit(work, rooms, options) for rooms in shares()]):
            ended.append(future.result())
            print(ended[-1].output, flush=True)
    print(summed_up(ended, time.monotonic() - begun))
    return max(one.exit_code for one in ended)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
