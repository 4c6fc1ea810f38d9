"""`trestle resume RUN`: continue from the newest verified checkpoint, with what may change changed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from hashlib import sha256

from launcher import changes
from launcher.arguments import Parser
from launcher.errors import UserError
from launcher.job import Job, load_job
from launcher.run_folder import RunFolder
from launcher.supervise import check_shards, supervise
from training.metrics.events import EventLog


def parser() -> Parser:
    made = Parser(
        "resume",
        "Continue a run from its newest verified checkpoint, with another layout, length, learning rate or other\n"
        "nodes if asked. What changes is noted in events.jsonl; the former recipe stays as recipe-<n>.yaml.\n\n"
        + changes.help_text(),
        "  trestle resume runs/demo\n"
        "  trestle resume runs/demo --training.steps 600 --parallel.tensor 2 --cluster.ranks_per_node 4",
        takes_overrides=True,
    )
    made.add_argument("run", metavar="RUN", help="a run's folder, such as runs/demo")
    made.add_argument("--print_config", action="store_true", help="print the resolved recipe, each key explained")
    return made


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    folder = RunFolder.existing(arguments.run)
    job = load_job(folder.path, overrides)
    found = changes.changes(load_job(folder.path).document(), job.document())
    if arguments.print_config:
        print(job.explained(), end="")
        return 0
    job.check()
    stream = check_shards(job.recipe)
    if folder.tokenizer.is_file() and sha256(folder.tokenizer.read_bytes()).hexdigest() != stream.tokenizer_sha256:
        raise UserError(f"data.mix was made with another tokenizer than this run; prepare it with {folder.tokenizer}")
    check_newest(folder, job)
    note(folder, job, found)
    return supervise(folder, job)


def check_newest(folder: RunFolder, job: Job) -> None:
    """Refuse another model or other data than the newest checkpoint's, before anything is touched or started.

    Ranks look again, at the checkpoint that they load. Raises CheckpointMismatch, DataMismatch, UnknownFormat.
    """
    from data_pipeline.stream import Stream
    from training.checkpoint import Checkpoint, DamagedCheckpoint, candidates
    from training.continuing import check_continues

    newest = next(iter(candidates(folder.checkpoints)), None)
    if newest is None:
        return
    try:
        checkpoint = Checkpoint(newest)
    except DamagedCheckpoint:  # the ranks will name it, set it aside and take the one before
        return
    data = checkpoint.state["data"]
    stream = Stream(job.recipe.data, job.recipe.run.seed, data["exceptions"] if data else [])
    check_continues(checkpoint, job.recipe, stream)


def note(folder: RunFolder, job: Job, found: list[changes.Change]) -> None:
    """Keep the former recipe, put the new one in its place, and say in events.jsonl what changed."""
    if not found:
        return
    with folder.lock():
        folder.write_recipe(job.to_yaml(), keep_old=True)
        log = EventLog(folder.events)
        for kind, keys in changes.events(found):
            log.write(kind, keys=keys)
