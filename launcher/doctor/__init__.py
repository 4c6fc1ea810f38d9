"""`trestle doctor`: one screen on whether this machine can train, and what to mend.

- `findings`   a line of the screen, and the screen
- `versions`   known-bad versions and pairs (the table to extend)
- `machine`    shared memory, file handles, cores, memory, disk, clock, rights, compiler
- `devices`, `ranks`, `ray_check`   measured in processes of their own, with deadlines; `child` runs them
- `examination`  all of it in order
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.arguments import Parser


def parser() -> Parser:
    made = Parser(
        "doctor",
        "Look at this machine as training will: versions, devices and their speed, sums over ranks, a private Ray,\n"
        "shared memory, file handles, disk, clock. Says what will not work and how to mend it. Takes about 15 s;\n"
        "the exit code is 0 if nothing FAILs, else 1. Run it on every node.",
        "  trestle doctor\n  trestle doctor /shared/runs\n  trestle doctor --json",
    )
    made.add_argument("directory", metavar="DIR", nargs="?", default="runs", help="where runs go (default: runs)")
    made.add_argument("--json", action="store_true", help="the findings as one JSON object")
    return made


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from launcher.doctor.examination import examine
    from launcher.doctor.findings import Status, as_json, as_text

    started = time.monotonic()
    findings = examine(Path(arguments.directory))
    seconds = time.monotonic() - started
    print(json.dumps(as_json(findings, seconds), indent=1) if arguments.json else as_text(findings, seconds))
    return 1 if any(one.status is Status.FAIL for one in findings) else 0
