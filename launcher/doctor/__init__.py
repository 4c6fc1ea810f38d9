"""`trestle doctor`: one screen on whether this machine can train, and what to mend.

- `findings`   a line of the screen, and the screen
- `versions`   known-bad versions and pairs (the table to extend)
- `machine`    shared memory, file handles, cores, memory, disk, clock, rights, compiler
- `devices`, `ranks`, `ray_check`   measured in processes of their own, with deadlines; `child` runs them
- `examination`  all of it in order; `nodes` the same on every node of a running cluster
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.arguments import Parser


def parser() -> Parser:
    made = Parser(
        "doctor",
        "Look at this machine as training will: versions, devices and their speed, sums over ranks, a private Ray,\n"
        "shared memory, file handles, disk, clock. Says what will not work and how to mend it. Takes about 15 s;\n"
        "the exit code is 0 if nothing FAILs, else 1. With --address it looks at every node of a running Ray.",
        "  trestle doctor\n  trestle doctor /shared/runs\n  trestle doctor --address 10.0.0.1:6379\n"
        "  trestle doctor --json",
    )
    made.add_argument("directory", metavar="DIR", nargs="?", default="runs", help="where runs go (default: runs)")
    made.add_argument("--json", action="store_true", help="the findings as one JSON object")
    made.add_argument("--address", default=None, help="host:port of a Ray head: look at all of its nodes instead")
    made.add_argument("--node-address", default=None, help="this machine's own address in that cluster, if it has more")
    made.add_argument("--without-ray", action="store_true", help="do not try a private Ray: one is running here")
    return made


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from launcher.doctor.examination import examine
    from launcher.doctor.findings import Status, as_json, as_text
    from launcher.doctor.nodes import examine_nodes

    started = time.monotonic()
    directory = Path(arguments.directory)
    if sys.stderr.isatty():
        print("looking, calculating, starting a Ray …", file=sys.stderr, flush=True)
    if arguments.address is not None:
        findings = examine_nodes(directory, arguments.address, arguments.node_address)
    else:
        findings = examine(directory, private_ray=not arguments.without_ray)
    seconds = time.monotonic() - started
    print(json.dumps(as_json(findings, seconds), indent=1) if arguments.json else as_text(findings, seconds))
    return 1 if any(one.status is Status.FAIL for one in findings) else 0
