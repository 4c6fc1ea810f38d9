"""`trestle submit RECIPE`: the same as `trestle train`, on a cluster, with the code of this checkout."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.locations import is_remote
from launcher.arguments import Parser, add_recipe
from launcher.checkout import Checkout, read_checkout
from launcher.dry_run import add_dry_run, check_anywhere, dry_run
from launcher.errors import UserError
from launcher.head import add_head, follow, host_of, jobs_of
from launcher.in_job import RECIPE, SUBMISSION
from launcher.job import Job, load_job
from launcher.sources import find_recipe
from launcher.supervise import check_shards
from launcher.tunnel import tunnel_words
from training.recipe import anchor_shards

if TYPE_CHECKING:
    from cluster.jobs import Jobs

_PASSWORD = re.compile(r"://[^/\s'\"@:]*:[^/\s'\"@]+@")


def parser() -> Parser:
    made = Parser(
        "submit",
        "Train a model on a cluster: this checkout's code, with what is not committed, and the recipe are handed to\n"
        "the head's dashboard as a job of Ray. A run that has checkpoints goes on from the newest; so submitting\n"
        "again is also how a run is continued after `trestle stop`, a failure, or the loss of the head.\n"
        "Relative paths are taken from the current directory, and must lead to the same on every node.\n"
        "With --follow the exit code is the job's: 0 finished, 75 saved and stopped, 2 refused, 1 failed.",
        "  ssh -N -L 8265:127.0.0.1:8265 HEAD &\n"
        "  trestle submit gpt3-1.3b --data /shared/shards/mix.yaml --run.directory /shared/runs --cluster.nodes 2\n"
        "  trestle submit demo --name first --token-file ~/.ray/auth_token --follow",
        takes_overrides=True,
    )
    add_recipe(made)
    made.add_argument("--name", help="the run's name, as --run.name; its jobs are trestle-NAME-1, -2, …")
    made.add_argument("--follow", action="store_true", help="show what the job prints until it has ended")
    made.add_argument("--python", help="the interpreter there (this one's path if it is there, else `python`)")
    add_head(made)
    add_dry_run(made)
    return made


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    named = [] if arguments.name is None else [f"--run.name={arguments.name}"]
    job = load_job(find_recipe(arguments.recipe), [*overrides, *named])
    if arguments.print_config:
        print(job.explained(), end="")
        return 0
    if job.cluster.address is not None:
        raise UserError("cluster.address is for `trestle train`; a job joins the cluster that it is submitted to")
    if arguments.dry_run:
        return dry_run(job, all_ranks=arguments.all_ranks, as_json=arguments.json)
    job.cluster.allow_open_head |= arguments.allow_open_head
    unseen = check(job)
    checkout = read_checkout()
    jobs = jobs_of(arguments)
    name = _next_name(jobs, job.recipe.run.name)
    for line in _statements(checkout, unseen):
        print(f"trestle: {line}", flush=True)
    _submit(jobs, name, job, checkout, arguments.python)
    print("\n".join(_what_next(job, name, jobs.address)), flush=True)
    return follow(jobs, jobs.find(name)) if arguments.follow else 0


def check(job: Job) -> list[str]:
    """Refuse what `trestle train` would refuse, as far as it can be seen from here, and make its paths absolute.

    Returns the shards that cannot be seen from here. Raises what `check_shards` raises, UserError, RecipeError.
    """
    from training.inputs import inputs_of

    check_anywhere(job)
    job.recipe.model.check_fresh()
    places = [str(place) for place in inputs_of(job.recipe).locations()]
    unseen = [place for place in places if is_remote(place) or not (Path(place) / "manifest.json").is_file()]
    if not unseen:
        check_shards(job.recipe).close()
    elif not job.recipe.data.mix:
        raise UserError("data.mix is empty: name shards, such as --data shards/mix.yaml")
    anchor_shards(job.recipe)
    job.recipe.run.directory = str(Path(job.recipe.run.directory).absolute())
    if _PASSWORD.search(job.to_yaml()):
        raise UserError(
            "the recipe holds a password in a URL, and recipes are kept and shown: put it where the nodes look for it, "
            "such as ~/.aws/credentials, and write the URL without"
        )
    return unseen


def _statements(checkout: Checkout, unseen: list[str]) -> list[str]:
    lines = [f"shipping {checkout.describe()}"]
    if checkout.left_out:
        lines.append(f"left behind, since their names are those of secrets: {', '.join(checkout.left_out)}")
    if unseen:
        lines.append(f"not to be seen from here, so that only the job will check them: {', '.join(unseen)}")
    return lines


def _next_name(jobs: Jobs, run: str) -> str:
    from cluster.jobs import job_name

    before = jobs.list()
    for other in before:
        if other.run == run and not other.over:
            raise UserError(f"{other.name} is at work on this run: `trestle stop {other.name}`, or give another --name")
    return job_name(run, before)


def _submit(jobs: Jobs, name: str, job: Job, checkout: Checkout, python: str | None) -> None:
    """Hand everything over."""
    from cluster.jobs import TITLE, PackageTooLarge

    run = job.recipe.run
    folder = str(Path(run.directory) / run.name)
    submission = {"job": name, "folder": folder, "commit": checkout.commit, "uncommitted": list(checkout.changed)}
    metadata = {
        TITLE: run.name,
        "folder": folder,
        "commit": checkout.commit or "",
        "uncommitted": ", ".join(checkout.changed)[:2000],
        "nodes": str(job.cluster.nodes),
        "ranks": str(job.world_size),
        "grace_seconds": str(job.cluster.grace_seconds),
    }
    with tempfile.TemporaryDirectory(prefix="trestle-submit-") as place:
        package = Path(place) / f"{name}.zip"
        checkout.pack(package, {str(RECIPE): job.to_yaml(), str(SUBMISSION): json.dumps(submission)})
        try:
            jobs.submit(name, _command(python), package, job.cluster.grace_seconds, metadata)
        except PackageTooLarge as error:
            largest = ", ".join(f"{path} ({size / 1e6:.0f} MB)" for path, size in checkout.largest())
            raise UserError(
                f"{error}: name in .gitignore what the job does not need; the largest: {largest}"
            ) from error


def _command(python: str | None) -> str:
    """For the head's shell, which gives way to it, so that signals and exit codes are the interpreter's own."""
    if python is not None:
        return f"exec {shlex.quote(python)} -m launcher.in_job"
    own = shlex.quote(sys.executable)
    return f'p={own}; [ -x "$p" ] || p=python; exec "$p" -m launcher.in_job'


def _what_next(job: Job, name: str, address: str) -> list[str]:
    folder = Path(job.recipe.run.directory) / job.recipe.run.name
    where = "" if address == "http://127.0.0.1:8265" else f" --address {address}"
    return [
        f"trestle: submitted {name}; its run is {folder} on the cluster",
        f"  follow    trestle logs {name} --follow{where}",
        f"  stop      trestle stop {name}{where}",
        "  watch     TensorBoard, on the head's loopback:",
        *(f"  {line}" for line in tunnel_words(folder, host_of(address))),
    ]
