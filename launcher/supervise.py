"""Start a run's ranks, show what they say, note what happens to them, and say at the end what to do next."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import BadConfig
from data_pipeline.locations import is_remote
from launcher.dry_run import say_short
from launcher.errors import UserError
from launcher.job import Job
from launcher.run_folder import RunFolder
from launcher.tunnel import tunnel_words
from modeling.errors import ModelError
from training.errors import RecipeError
from training.metrics.events import PatientEventLog
from training.metrics.ledger import goodput_in_words
from training.output import speak_patiently
from training.recipe import Recipe, check

if TYPE_CHECKING:
    from data_pipeline.mixed_stream import MixedStream


def check_shards(recipe: Recipe, prepare_with: str | None = None) -> MixedStream:
    """Refuse shards that are missing or do not fit the model, before any rank starts; the stream that they make.

    A vocabulary that the recipe leaves open becomes the shards'. `prepare_with` is the recipe from which
    `trestle prepare` makes them, if there is one. Raises UserError, RecipeError, BadShards, BadConfig, ModelError.
    """
    if not recipe.data.mix:
        raise UserError("data.mix is empty: name shards, such as --data shards/mix.yaml")
    from training.inputs import inputs_of

    inputs = inputs_of(recipe)
    for shards in inputs.locations():
        if not is_remote(shards) and not (Path(shards) / "manifest.json").is_file():
            make = f"make them with `trestle prepare {prepare_with}`"
            name = "prepare your corpora (see `trestle prepare --help`) and name them with --data shards/mix.yaml"
            raise UserError(f"the shards {shards} are not there: {make if prepare_with else name}")
    stream = inputs.open()
    inputs.check(stream)
    if recipe.model.vocab_size is None:
        recipe.model.vocab_size = stream.vocab_size
        recipe.model.check_layout(recipe.parallel)
    if recipe.model.vocab_size < stream.vocab_size:
        raise UserError(
            f"model.vocab_size is {recipe.model.vocab_size}, but the tokenizer of data.mix has {stream.vocab_size} "
            f"tokens; set it to {stream.vocab_size} or more, or to null"
        )
    if not stream.tokenizer_path.is_file():
        raise UserError(f"the tokenizer of {recipe.data.mix[0].shards} is not at {stream.tokenizer_path}; put it there")
    if inputs.tokenizer_sha256(stream.tokenizer_path) != stream.tokenizer_sha256:
        raise UserError(
            f"{stream.tokenizer_path} is not the tokenizer that {recipe.data.mix[0].shards} was made with, by its "
            "checksum; put that one there"
        )
    return stream


def supervise(folder: RunFolder, job: Job) -> int:
    """Run the ranks of `job` in `folder` until they finish or give up; the exit code for the shell."""
    import cluster

    speak_patiently()  # a terminal or a `tee` that goes away is no reason to end the ranks before they have saved
    log, begun = PatientEventLog(folder.events), time.monotonic()

    def on_event(event: Mapping[str, Any]) -> None:
        fields = {key: value for key, value in event.items() if key != "event"}
        # Beside the time of day, which may jump: goodput is computed from this launch's own seconds.
        log.write(event["event"], **fields, uptime=round(time.monotonic() - begun, 3))
        line = _line(event)
        if line:
            print(f"trestle: {line}", flush=True)

    with folder.lock():
        say_short(job)
        outcome = cluster.run(
            [sys.executable, "-m", "training.worker", str(folder.path.absolute())],
            job.cluster,
            tensor_parallel=job.recipe.parallel.tensor,
            environment={},
            log_directory=folder.logs,
            on_event=on_event,
            on_output=lambda line: print(line, flush=True),
            node_counts=node_counts(job),
            standby=True,
        )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: None)  # nothing is left to stop but the words that follow
    if outcome.exit_code == 0:
        print(closing_words(folder))
        if job.cluster.address is not None:
            print("\n".join(tunnel_words(folder.path.absolute(), socket.gethostname())))
    elif outcome.exit_code == 75:
        told = _goodput(folder)
        print(
            f"trestle: {outcome.reason}\n{told}  resume    {_command('trestle')} resume {shlex.quote(str(folder.path))}"
        )
    else:
        print(f"trestle: {outcome.reason}\n{_goodput(folder)}".rstrip(), file=sys.stderr)
    return outcome.exit_code


def node_counts(job: Job) -> list[int]:
    """On how many nodes, fewer than asked for, the same run can go on: largest first.

    The layout and the global batch stay, and each rank accumulates more micro-batches. Whether the numbers divide is
    what the recipe's own check says.
    """
    recipe, cluster = job.recipe, job.cluster
    found = []
    for nodes in range(cluster.nodes - 1, 0, -1):
        try:
            check(recipe, nodes * cluster.ranks_per_node)
        except (RecipeError, ModelError, BadConfig):
            continue
        found.append(nodes)
    return found


def _line(event: Mapping[str, Any]) -> str | None:
    """What the console says of an event; the others are seen by what follows them."""
    if event["event"] == "failed":
        return f"attempt {event['attempt']} failed: {event.get('reason', 'no reason known')}"
    if event["event"] == "hang_report":
        return str(event.get("problem", f"hang report: {event['path']}/report.txt"))
    if event["event"] == "leaving":
        return f"{', '.join(event['nodes'])} about to go away ({event['reason']}); everything is saved"
    if event["event"] == "resized" and "from" in event:
        nodes = f"{event['to']} node{'' if event['to'] == 1 else 's'}"
        return f"on {nodes} instead of {event['from']}, {event['ranks']} ranks; the global batch stays"
    if event["event"] == "restarted":
        return f"started again (attempt {event['attempt']}, {event['ranks']} ranks on {', '.join(event['nodes'])})"
    return None


def closing_words(folder: RunFolder) -> str:
    """Where the run is, how good it became, and the commands that come next."""
    figures = folder.last_figures()
    run = shlex.quote(str(folder.path))
    lines = [f"run {folder.path} finished" + (f" at step {figures['step']}" if "step" in figures else "")]
    names = {
        "loss": "loss (nats per token)",
        "validation_loss": "validation loss (nats per token)",
        "validation_perplexity": "validation perplexity",
        "validation_bits_per_byte": "validation bits per byte",
    }
    if "logit_scale" in figures:
        names = {"loss": "loss (nats)", "validation_loss": "held-out loss (nats)"}
        names |= {n: n for n in figures if n.endswith(("_r1", "/top1", "/accuracy"))}
    width = max(map(len, names.values()))
    lines += [f"  {label:{width}}  {_figure(figures[name])}" for name, label in names.items() if name in figures]
    lines += [line for line in _goodput(folder).splitlines() if line]
    trestle = _command("trestle")
    lines += [
        "next:",
        f"  watch     {_command('tensorboard')} --logdir {run}/tensorboard --host 127.0.0.1",
        f"  resume    {trestle} resume {run} --training.steps N",
        f"  evaluate  {trestle} evaluate {run}"
        if "logit_scale" in figures
        else f"  generate  {trestle} generate {run} --prompt TEXT",
    ]
    return "\n".join(lines)


def _goodput(folder: RunFolder) -> str:
    """A line with its end, or nothing where no rank has got far enough to tell."""
    told = goodput_in_words(folder.path)
    return "" if told is None else f"  goodput   {told}\n"


def _figure(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _command(name: str) -> str:
    """How to call a program of this environment from the current directory."""
    path = Path(os.path.normpath(Path(sys.executable).parent / name))  # not resolved: that would leave the environment
    if not path.is_file():
        return name
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)
