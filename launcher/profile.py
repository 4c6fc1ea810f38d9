"""`trestle profile RUN`: where the time of a run's steps goes, without a change to the run."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher import changes
from launcher.arguments import Parser
from launcher.errors import EnvironmentFailure, UserError
from launcher.job import Job, load_job
from launcher.profile_shown import shown
from launcher.remote_run import is_url
from launcher.resume import check_newest
from launcher.run_folder import LOCK, RunFolder
from launcher.supervise import check_shards
from training.profile_files import RECIPE, REQUEST, Request, summary_file
from training.recipe import anchor_shards

PATIENCE_SECONDS = 1800.0
"""Least heartbeat deadline: after the last step the profiler and the trace's reader are silent for minutes where a step
has a million operators. As long as ranks wait for each other in a collective."""


def parser() -> Parser:
    made = Parser(
        "profile",
        "Record a few steps of a run with torch's profiler, from its newest verified checkpoint (or its initial\n"
        "weights), on its own recipe and layout or as `trestle resume` could change them. Writes a trace of each rank\n"
        "that TensorBoard and Perfetto read, and prints the kernels that take longest (without a GPU: the operators),\n"
        "the shares of the step's phases and of communication, and how long the device idles. The run itself stays as\n"
        "it is.",
        "  trestle profile runs/demo\n"
        "  trestle profile runs/demo --steps 5 --ranks 0,1 --parallel.tensor 2 --cluster.ranks_per_node 2\n"
        "  trestle profile runs/demo --json",
        takes_overrides=True,
    )
    made.add_argument("run", metavar="RUN", help="a run's folder, such as runs/demo")
    made.add_argument("--steps", type=int, default=3, metavar="N", help="recorded steps (default 3)")
    made.add_argument(
        "--warmup",
        type=int,
        default=3,
        metavar="N",
        help="steps before them, which compile and fill caches (default 3)",
    )
    made.add_argument("--ranks", metavar="0,1,…", help="record these ranks (default: all)")
    made.add_argument("--shapes", action="store_true", help="note the shapes of operators' arguments")
    made.add_argument("--stacks", action="store_true", help="note the line of Python that called each operator")
    made.add_argument("--memory", action="store_true", help="note every allocation")
    made.add_argument("--top", type=int, default=15, metavar="N", help="kernels or operators to print (default 15)")
    made.add_argument("--output", metavar="DIR", help="write here instead of RUN/profile/TIME")
    made.add_argument("--json", action="store_true", help="print all of it as JSON, what ranks say on stderr")
    return made


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    if is_url(arguments.run):
        raise UserError(f"{arguments.run} is a URL; `trestle resume` fetches a run, and profile takes a folder here")
    folder = RunFolder.existing(arguments.run)
    job = load_job(folder.path, [f"--{changes.PERMISSION}=false", *overrides])
    if overrides:
        anchor_shards(job.recipe)
    changes.changes(load_job(folder.path).document(), job.document())  # raises for what would be another run
    job.check()
    request = request_of(arguments, folder, job)
    with _idle(folder):
        check_shards(job.recipe)
        check_newest(folder, job)
        place = _make_place(folder, arguments.output)
        (place / RECIPE).write_text(job.to_yaml())
        request.write(place / REQUEST)
        exit_code = _record(place, job, quiet=arguments.json)
    if exit_code != 0:
        return exit_code
    found = [json.loads((place / summary_file(rank)).read_text()) for rank in request.ranks]
    if arguments.json:
        print(json.dumps({"run": str(folder.path), "place": str(place), "ranks": found}, indent=1))
    else:
        print(shown(found, place, arguments.top))
    return 0


def request_of(arguments: argparse.Namespace, folder: RunFolder, job: Job) -> Request:
    """What the ranks are asked for. Raises UserError."""
    for name in ("steps", "warmup", "top"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    return Request(
        run=str(folder.path.absolute()),
        steps=arguments.steps,
        warmup=arguments.warmup,
        ranks=_ranks(arguments.ranks, job.world_size),
        shapes=arguments.shapes,
        stacks=arguments.stacks,
        memory=arguments.memory,
    )


def _ranks(text: str | None, world_size: int) -> list[int]:
    if text is None:
        return list(range(world_size))
    try:
        found = sorted({int(word) for word in text.split(",")})
    except ValueError:
        raise UserError(f"--ranks {text}: name them by number, such as --ranks 0,1") from None
    if found[0] < 0 or found[-1] >= world_size:
        raise UserError(f"--ranks {text}: the run has the ranks 0 to {world_size - 1}")
    return found


@contextmanager
def _idle(folder: RunFolder) -> Iterator[None]:
    """While no other `trestle` trains in the folder. One that was never trained in, or is another's to write in, has no
    lock for us, and gets none.
    """
    if not os.access(folder.path / LOCK, os.W_OK):
        yield
        return
    with folder.lock():
        yield


def _make_place(folder: RunFolder, chosen: str | None) -> Path:
    """The new folder of this profile. Raises UserError, EnvironmentFailure."""
    place = Path(chosen) if chosen else folder.path / "profile" / time.strftime("%Y%m%d-%H%M%S")
    try:
        place.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{place} is there already; name another folder with --output") from None
    except OSError as error:
        raise EnvironmentFailure(f"{place} cannot be made: {error.strerror}; name another with --output") from error
    return place


def _record(place: Path, job: Job, *, quiet: bool) -> int:
    """Run the ranks; the exit code for the shell. What they say goes to stderr where stdout is for JSON.

    Stopped before its end, a profile has failed: there is nothing to resume.
    """
    import cluster
    from cluster.policy import EXIT_RESUME_ME

    out = sys.stderr if quiet else sys.stdout
    failures: list[str] = []

    def on_event(event: Mapping[str, Any]) -> None:
        if event["event"] == "failed":
            failures.append(str(event.get("reason", "no reason known")))

    outcome = cluster.run(
        [sys.executable, "-m", "training.profiling", str(place.absolute())],
        replace(
            job.cluster,
            heartbeat_seconds=max(job.cluster.heartbeat_seconds, PATIENCE_SECONDS),
            max_restarts=0,
            standby=False,
            min_nodes=job.cluster.nodes,
            grow=False,
        ),
        tensor_parallel=job.recipe.parallel.tensor,
        environment={"KINETO_LOG_LEVEL": os.environ.get("KINETO_LOG_LEVEL", "99")},  # it tells of its starts and stops
        log_directory=place / "logs",
        on_event=on_event,
        on_output=lambda line: print(line, file=out, flush=True),
    )
    if outcome.exit_code != 0:
        why = failures[-1] if failures else outcome.reason
        print(f"trestle: nothing was recorded: {why}; see {shlex.quote(str(place / 'logs'))}", file=sys.stderr)
    return EnvironmentFailure.exit_code if outcome.exit_code == EXIT_RESUME_ME else outcome.exit_code
