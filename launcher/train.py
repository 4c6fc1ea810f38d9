"""`trestle train RECIPE`: check, make the run's folder, start the ranks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from launcher.arguments import Parser, add_recipe
from launcher.dry_run import add_dry_run, dry_run
from launcher.job import Job, load_job
from launcher.remote_run import check_not_begun
from launcher.run_folder import RunFolder
from launcher.sources import find_recipe
from launcher.supervise import check_shards, supervise
from training.errors import RecipeError
from training.recipe import anchor_shards


def parser() -> Parser:
    made = Parser(
        "train",
        "Train a model from a recipe, in the folder run.directory/run.name. Ranks that fail are started again from\n"
        "the newest verified checkpoint; Ctrl-C and SIGTERM save first. Any key of the recipe can be set with\n"
        "--SECTION.KEY VALUE; --print_config shows and explains them all.\n"
        'Times are steps or tokens: --training.steps 500, --optimizer.warmup "375M tokens".',
        "  trestle prepare demo\n"
        "  trestle train demo --run.name first --optimizer.lr 3e-4 --cluster.ranks_per_node 2\n"
        "  trestle train gpt3-125m --data shards/mix.yaml --print_config\n"
        "  trestle train gpt3-175b --dry-run",
        takes_overrides=True,
    )
    add_recipe(made)
    add_dry_run(made)
    return made


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    source = find_recipe(arguments.recipe)
    job = load_job(source, overrides)
    if arguments.print_config:
        print(job.explained(), end="")
        return 0
    if arguments.dry_run:
        return dry_run(job, all_ranks=arguments.all_ranks, as_json=arguments.json)
    try:
        job.check()
    except RecipeError as error:
        from launcher.prepare import how_to_make

        raise RecipeError(f"{error}{how_to_make(source)}") from error
    return supervise(begin(job, arguments.recipe if job.can_prepare else None), job)


def begin(job: Job, prepare_with: str | None = None) -> RunFolder:
    """The folder of a new run, once its shards are found to fit. `prepare_with`: as in `check_shards`.

    Raises what `check_shards` and `RunFolder.create` raise.
    """
    job.recipe.model.check_fresh()
    stream = check_shards(job.recipe, prepare_with)
    folder = RunFolder(Path(job.recipe.run.directory) / job.recipe.run.name)
    anchor_shards(job.recipe)
    if not folder.has_checkpoints():
        check_not_begun(job.recipe)
    folder.create(job.to_yaml(), stream.tokenizer_path)
    return folder
