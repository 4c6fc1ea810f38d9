"""`trestle stop NAME`: end a submitted job, after a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from launcher.arguments import Parser
from launcher.head import add_head, jobs_of

NOW_SECONDS = 300.0
"""Killing is a job, too, and Ray starts it beside ranks that hold every core."""


def parser() -> Parser:
    made = Parser(
        "stop",
        "Ask a submitted job to finish its step, save and leave, and wait for that: cluster.grace_seconds at most.\n"
        "Submitting the same run again continues it. The exit code is 0 if it has saved or had finished, 1 if not.",
        "  trestle stop demo\n  trestle stop trestle-demo-2 --now",
    )
    made.add_argument("name", metavar="NAME", help="a job's name, or a run's for its newest job")
    made.add_argument("--now", action="store_true", help="kill it: what came after its last checkpoint is lost")
    add_head(made)
    return made


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from cluster.jobs import STOP_MARGIN_SECONDS, read_closing_line

    jobs = jobs_of(arguments)
    job = jobs.find(arguments.name)
    if job.over:
        print(f"trestle: {job.name} has ended already: {job.status}")
        return 0
    if arguments.now:
        jobs.kill(job)
        jobs.wait(job, NOW_SECONDS)
        print(f"trestle: {job.name} was killed; its run is in {job.metadata.get('folder')}, with its last checkpoint")
        return 0
    grace = float(job.metadata.get("grace_seconds", 0.0))
    print(f"trestle: asking {job.name} to save and leave; it has {grace:g} s", flush=True)
    jobs.stop(job)
    ended = jobs.wait(job, grace + 2 * STOP_MARGIN_SECONDS)
    facts = read_closing_line(jobs.tail(ended))
    checkpoint = facts.get("checkpoint")
    where = f"its last checkpoint is {checkpoint}" if checkpoint else "it has no checkpoint"
    if ended.exit_code in (0, 75):
        print(f"trestle: {job.name} {ended.status}; {where}")
        return 0
    print(f"trestle: {job.name} ended without saving (see `trestle logs {job.name}`); {where}")
    return 1
