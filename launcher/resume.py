"""`trestle resume RUN`: continue from the newest verified checkpoint, with what may change changed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from launcher import changes
from launcher.arguments import Parser
from launcher.dry_run import add_dry_run, dry_run
from launcher.errors import UserError
from launcher.job import Job, load_job
from launcher.remote_run import fetch_run, is_url
from launcher.run_folder import RunFolder
from launcher.supervise import check_shards, supervise
from training.metrics.events import PatientEventLog
from training.recipe import anchor_shards


def parser() -> Parser:
    made = Parser(
        "resume",
        "Continue a run from its newest verified checkpoint, with another layout, length, learning rate or other\n"
        "nodes if asked. What changes is noted in events.jsonl; the former recipe stays as recipe-<n>.yaml.\n"
        "--data.allow-change lets this resume go on with other data; corpora that stay go on where they were.\n"
        "A run with checkpoint.remote is also named by its URL: what is not here comes from there.\n\n"
        + changes.help_text(),
        "  trestle resume runs/demo\n"
        "  trestle resume runs/demo --training.steps 600 --parallel.tensor 2 --cluster.ranks_per_node 4\n"
        "  trestle resume runs/demo --data.mix.0.weight 0.5 --data.allow-change\n"
        "  trestle resume s3://bucket/prefix/demo --run.directory runs",
        takes_overrides=True,
    )
    made.add_argument("run", metavar="RUN", help="a run's folder, such as runs/demo, or its URL")
    made.add_argument("--print_config", action="store_true", help="print the resolved recipe, each key explained")
    add_dry_run(made)
    return made


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    run = arguments.run
    folder = fetch_run(run, overrides) if is_url(run) else RunFolder.existing(run)
    job = load_job(folder.path, [f"--{changes.PERMISSION}=false", *overrides])
    if any(override.startswith(("--data.", "--data=", "--evaluation.", "--evaluation=")) for override in overrides):
        anchor_shards(job.recipe)
    found = changes.changes(load_job(folder.path).document(), job.document())
    if arguments.print_config:
        print(job.explained(), end="")
        return 0
    if arguments.dry_run:
        return dry_run(job, all_ranks=arguments.all_ranks, as_json=arguments.json)
    go_on(folder, job, found)
    return supervise(folder, job)


def go_on(folder: RunFolder, job: Job, found: list[changes.Change]) -> None:
    """Make a run's folder ready to be continued as `job` says, once what it `found` changed is known to fit."""
    job.check()
    stream = check_shards(job.recipe)
    from training.inputs import inputs_of

    own = folder.tokenizer
    if own.is_file() and inputs_of(job.recipe).tokenizer_sha256(own) != stream.tokenizer_sha256:
        raise UserError(f"data.mix was made with another tokenizer than this run; prepare it with {folder.tokenizer}")
    check_newest(folder, job)
    note(folder, job, found)


def check_newest(folder: RunFolder, job: Job) -> None:
    """Refuse another model or other data than the newest checkpoint's, before anything is touched or started. Data may
    be others if data.allow_change says so.

    Ranks look again, at the checkpoint that they load. Raises CheckpointMismatch, DataMismatch, UnknownFormat.
    """
    from training.checkpoint import Checkpoint, DamagedCheckpoint, candidates
    from training.continuing import check_continues, stream_of

    newest = next(iter(candidates(folder.checkpoints)), None)
    if newest is None:
        return
    try:
        checkpoint = Checkpoint(newest)
    except DamagedCheckpoint:  # the ranks will name it, set it aside and take the one before
        return
    check_continues(checkpoint, job.recipe, stream_of(job.recipe, checkpoint))


def note(folder: RunFolder, job: Job, found: list[changes.Change]) -> None:
    """Keep the former recipe, put the new one in its place, and say in events.jsonl what changed."""
    if not found:
        return
    with folder.lock():
        folder.write_recipe(job.to_yaml(), keep_old=True)
        log = PatientEventLog(folder.events)
        for kind, keys in changes.events(found):
            log.write(kind, keys=keys)
