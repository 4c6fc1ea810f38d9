"""`trestle logs NAME`: what a submitted job prints."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from launcher.arguments import Parser
from launcher.head import add_head, follow, jobs_of


def parser() -> Parser:
    made = Parser(
        "logs",
        "Show what a submitted job has printed: rank 0's lines and what happened to the others. The other ranks' logs\n"
        "are in the run's folder. The exit code is the job's: 0 finished, 75 saved and stopped, 2 refused, 1 failed;\n"
        "0 while it runs.",
        "  trestle logs demo --follow\n  trestle logs trestle-demo-2 --address http://127.0.0.1:8265",
    )
    made.add_argument("name", metavar="NAME", help="a job's name, or a run's for its newest job")
    made.add_argument("--follow", action="store_true", help="go on until the job has ended")
    add_head(made)
    return made


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    jobs = jobs_of(arguments)
    job = jobs.find(arguments.name)
    if arguments.follow:
        return follow(jobs, job)
    print(jobs.output(job), end="")
    if not job.over:
        return 0
    return 1 if job.exit_code is None else job.exit_code
