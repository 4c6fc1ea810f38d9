"""One rank's life: `python -m training.worker RECIPE` with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.

RECIPE is a YAML file or a run's folder; further arguments are dotted overrides. Without RANK it is a run of one rank. Whoever starts the
ranks (`trestle train`, torchrun, Slurm) starts all of them with the same arguments; each continues from the newest verified checkpoint.

Exit codes: 0 finished; 75 asked to stop by SIGTERM and saved, resume me; 2 the recipe is at fault; 1 anything else.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from training.errors import TrainingError
from training.process import RESUME_ME, Heartbeat, RankEnvironment, StopRequest, start_process_group
from training.recipe import RECIPE_FILE, Recipe, check, load_recipe, to_yaml

_log = logging.getLogger("trestle.training")


def main(arguments: list[str]) -> int:
    """Run one rank and return its exit code; mistakes are one line on stderr."""
    logging.basicConfig(level=os.environ.get("TRESTLE_LOG", "WARNING").upper(), format="%(levelname)s %(name)s: %(message)s")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        return work(Path(arguments[0]), arguments[1:], RankEnvironment.read(os.environ))
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        print(f"trestle: {error}", file=sys.stderr, flush=True)
        return int(code)


def work(source: Path, overrides: list[str], environment: RankEnvironment) -> int:
    """Train the recipe at `source` as the rank that `environment` says."""
    heartbeat = Heartbeat(environment.heartbeat)
    recipe = load_recipe(source, overrides)
    folder = source if source.is_dir() else Path(recipe.run.directory) / recipe.run.name
    heartbeat.beat(0)

    import torch.distributed as dist

    from training.trainer import Trainer

    recipe, stream_vocabulary = _with_vocabulary(recipe)
    check(recipe, environment.world_size)
    _write_recipe(folder, recipe, environment.rank)
    _make_deterministic(recipe)
    store = start_process_group(environment, timeout_seconds=1800.0)
    stop = StopRequest(store)
    heartbeat.beat(0)
    parts, checkpoint = _assemble(recipe, folder, environment, heartbeat, stop, stream_vocabulary)
    heartbeat.beat(0 if checkpoint is None else checkpoint.step)
    finished = Trainer(parts, checkpoint).run()
    parts.engine.close()
    dist.barrier()
    dist.destroy_process_group()
    return 0 if finished else RESUME_ME


def _with_vocabulary(recipe: Recipe) -> tuple[Recipe, int]:
    """The shards decide the vocabulary unless the recipe does; a vocabulary that lacks tokens of the shards is refused."""
    from data_pipeline.stream import Stream

    stream = Stream(recipe.data, recipe.run.seed)
    tokens, length = stream.vocab_size, stream.sequence_length
    stream.close()
    model = recipe.model
    if model.vocab_size is None:
        model.vocab_size = tokens
    if model.vocab_size < tokens:
        raise _mismatch(f"model.vocab_size is {model.vocab_size}, but the shards' tokenizer has {tokens} tokens; set it to {tokens} or null")
    if model.sequence_length != length:
        raise _mismatch(
            f"model.sequence_length is {model.sequence_length}, but the shards were packed for {length}; "
            f"set it to {length}, or prepare the shards again"
        )
    return recipe, tokens


def _mismatch(text: str) -> Exception:
    from training.errors import RecipeError

    return RecipeError(text)


def _write_recipe(folder: Path, recipe: Recipe, rank: int) -> None:
    """A run started without `trestle train` becomes self-contained, too."""
    if rank == 0 and not (folder / RECIPE_FILE).exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / RECIPE_FILE).write_text(to_yaml(recipe))
        except OSError as error:
            raise TrainingError(f"the run's folder {folder} cannot be written: {error.strerror}") from error


def _make_deterministic(recipe: Recipe) -> None:
    import torch

    if recipe.training.deterministic and torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
        torch.use_deterministic_algorithms(True)


def _assemble(
    recipe: Recipe, folder: Path, environment: RankEnvironment, heartbeat: Heartbeat, stop: StopRequest, vocabulary: int
) -> tuple[Any, Any]:
    """Process groups, engine, stream and checkpoints of this rank; and the checkpoint to continue from."""
    from data_pipeline.stream import Stream
    from modeling import groups, megatron_bridge
    from modeling.execution import Execution
    from modeling.layout import Layout
    from modeling.registry import family
    from training.engine import start_engine
    from training.metrics import EventLog
    from training.saving import RunCheckpoints
    from training.trainer import Parts

    parallel, training = recipe.parallel, recipe.training
    layout = Layout(parallel.tensor, parallel.pipeline, parallel.virtual_pipeline, parallel.sequence)
    here = groups.start_groups(layout)
    megatron_bridge.seed_dropout(recipe.run.seed, here.tensor)
    chosen = family(recipe.model.family)
    execution = Execution(layout, training.precision, training.recompute, training.compile, recipe.run.seed)
    engine = start_engine(chosen, recipe.model, recipe.optimizer, parallel, execution, recipe.batch.micro_batch_size)
    heartbeat.beat(0)
    events = EventLog(folder / "events.jsonl")
    checkpoints = RunCheckpoints(folder, recipe.checkpoint, events)
    checkpoint = checkpoints.resume_point()
    exceptions = [] if checkpoint is None or checkpoint.state["data"] is None else checkpoint.state["data"]["exceptions"]
    stream = Stream(recipe.data, recipe.run.seed, exceptions)
    if environment.rank == 0 and checkpoint is not None:
        events.write("resumed", step=checkpoint.step, attempt=environment.attempt)
        print(f"resuming from step {checkpoint.step}", flush=True)
    parts = Parts(
        recipe, folder, chosen, engine, stream, checkpoints, events, heartbeat, stop, environment.rank, environment.world_size
    )
    return parts, checkpoint


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
