"""One rank's life: `python -m training.worker RECIPE` with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.

RECIPE is a YAML file or a run's folder; further arguments are dotted overrides. Without RANK it is a run of one rank.
Whoever starts the ranks (`trestle train`, torchrun, Slurm) starts all of them with the same arguments; each continues
from the newest verified checkpoint.

Exit codes: 0 finished; 75 asked to stop by SIGTERM and saved, resume me; 2 the recipe is at fault; 1 anything else.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from training import stacks, standby

if __name__ == "__main__":
    standby.become_rank_if_standby()  # before the imports below, which a standby does in its own way
    stacks.listen(os.environ)  # likewise: they take seconds and may themselves hang (a dead mount)

import torch
import torch.distributed as dist

from modeling import groups, megatron_bridge
from modeling.execution import Execution
from modeling.layout import Layout
from modeling.registry import family
from training.checkpoint import Checkpoint
from training.continuing import stream_of
from training.engine import Engine, start_engine
from training.errors import RecipeError, TrainingError
from training.inputs import inputs_of
from training.metrics import PatientEventLog
from training.output import speak_patiently
from training.process import RESUME_ME, Heartbeat, RankEnvironment, StopRequest, start_process_group
from training.recipe import RECIPE_FILE, Recipe, anchor_shards, check, load_recipe, to_yaml
from training.saving import RunCheckpoints
from training.shared_folder import check_shared, unseen
from training.trainer import Parts, Trainer

GROUP_TIMEOUT_SECONDS = 1800.0
"""Torch's own default; a supervisor's heartbeat deadline finds a hang long before."""


def main(arguments: list[str], life: Callable[[Path, list[str], RankEnvironment], int] | None = None) -> int:
    """Run one rank and return its exit code; mistakes are one line on stderr. `life`: other than `work`."""
    stacks.listen(os.environ)
    speak_patiently()
    level = os.environ.get("TRESTLE_LOG", "WARNING").upper()
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(sys.modules["__main__"].__doc__)
        return 0 if arguments else 2
    try:
        return (life or work)(Path(arguments[0]), arguments[1:], RankEnvironment.read(os.environ))
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            code = TrainingError.exit_code  # whatever was being written: the line names the file
        if code is None:
            raise
        print(f"trestle: {error}", file=sys.stderr, flush=True)
        return int(code)


def work(source: Path, overrides: list[str], environment: RankEnvironment) -> int:
    """Train the recipe at `source` as the rank that `environment` says."""
    # The first beat comes with the first step: until then a supervisor allows for imports, loading and compilation.
    heartbeat = Heartbeat(environment.heartbeat)
    if environment.world_size > 1 and not source.exists():
        raise unseen(source, environment.rank)
    recipe = with_vocabulary(load_recipe(source, overrides))
    check(recipe, environment.world_size)
    folder = source if source.is_dir() else Path(recipe.run.directory) / recipe.run.name
    _write_recipe(folder, recipe, environment.rank)
    make_deterministic(recipe)
    store = start_process_group(environment, GROUP_TIMEOUT_SECONDS)
    check_shared(folder)
    finished = train_in_group(recipe, folder, environment, heartbeat, StopRequest(store, heartbeat))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing is left to stop; Python's own end would let it kill
    dist.destroy_process_group()
    return 0 if finished else RESUME_ME


def train_in_group(
    recipe: Recipe, folder: Path, environment: RankEnvironment, heartbeat: Heartbeat, stop: StopRequest
) -> bool:
    """Train within the default process group, from the newest verified checkpoint; False when asked to stop early."""
    engine = build_engine(recipe)
    parts, checkpoint = _assemble(recipe, folder, environment, engine, heartbeat, stop)
    trainer = Trainer(parts, checkpoint)
    if environment.rank == 0 and checkpoint is not None:
        parts.events.write("resumed", step=checkpoint.step, attempt=environment.attempt)
        print(f"resuming from step {checkpoint.step}", flush=True)
        if parts.stream.changed is not None:
            parts.events.write("data_changed", step=checkpoint.step, difference=parts.stream.changed)
            print(f"from here on other data are read: {parts.stream.changed}", flush=True)
    finished = trainer.run()
    engine.close()
    dist.barrier()
    groups.stop_groups()
    return finished


def with_vocabulary(recipe: Recipe) -> Recipe:
    """The shards decide the vocabulary unless the recipe does. Raises RecipeError for a model that cannot read them."""
    stream = inputs_of(recipe).open()
    tokens, length = stream.vocab_size, stream.sequence_length
    stream.close()
    model = recipe.model
    if model.vocab_size is None:
        model.vocab_size = tokens
    if model.vocab_size < tokens:
        raise RecipeError(
            f"model.vocab_size is {model.vocab_size}, but the shards' tokenizer has {tokens} tokens; "
            f"set it to {tokens} or null"
        )
    if model.sequence_length != length:
        raise RecipeError(
            f"model.sequence_length is {model.sequence_length}, but the shards were packed for {length}; "
            f"set it to {length}, or prepare the shards again"
        )
    return recipe


def build_engine(recipe: Recipe) -> Engine:
    """Start the process groups of the recipe's layout, and the engine on them."""
    parallel, training = recipe.parallel, recipe.training
    layout = Layout(parallel.tensor, parallel.pipeline, parallel.virtual_pipeline, parallel.sequence)
    here = groups.start_groups(layout)
    megatron_bridge.seed_dropout(recipe.run.seed, here.tensor)
    execution = Execution(layout, training.precision, training.recompute, training.compile, recipe.run.seed)
    chosen = family(recipe.model.family)
    return start_engine(chosen, recipe.model, recipe.optimizer, parallel, execution, recipe.batch.micro_batch_size)


def _assemble(
    recipe: Recipe,
    folder: Path,
    environment: RankEnvironment,
    engine: Engine,
    heartbeat: Heartbeat,
    stop: StopRequest,
) -> tuple[Parts, Checkpoint | None]:
    """Stream and checkpoints of this rank; and the checkpoint to continue from."""
    events = PatientEventLog(folder / "events.jsonl")
    checkpoints = RunCheckpoints(folder, recipe.run.name, recipe.checkpoint, events)
    checkpoint = checkpoints.resume_point()
    stream = stream_of(recipe, checkpoint)
    parts = Parts(
        recipe=recipe,
        folder=folder,
        family=family(recipe.model.family),
        engine=engine,
        inputs=inputs_of(recipe),
        stream=stream,
        checkpoints=checkpoints,
        events=events,
        heartbeat=heartbeat,
        stop=stop,
        environment=environment,
    )
    return parts, checkpoint


def _write_recipe(folder: Path, recipe: Recipe, rank: int) -> None:
    """A run started without `trestle train` becomes self-contained, too."""
    if rank == 0 and not (folder / RECIPE_FILE).exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            anchor_shards(recipe)
            (folder / RECIPE_FILE).write_text(to_yaml(recipe))
        except OSError as error:
            raise TrainingError(f"the run's folder {folder} cannot be written: {error.strerror}") from error


def make_deterministic(recipe: Recipe) -> None:
    if recipe.training.deterministic and torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
        torch.use_deterministic_algorithms(True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
