"""`trestle plan RECIPE`: memory, time and cost of a training before anybody pays for it."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launcher.arguments import Parser, add_recipe
from launcher.dry_run import check_anywhere, read_vocabulary
from launcher.errors import EnvironmentFailure, UserError
from launcher.job import Job, load_job
from launcher.plan import published
from launcher.plan.candidates import written
from launcher.plan.data import epochs_of
from launcher.plan.efficiency import read_efficiency
from launcher.plan.estimate import estimate
from launcher.plan.figures import Estimate, Prices
from launcher.plan.hardware import ACCELERATORS, Accelerator, accelerator, check_precision
from launcher.plan.mend import Mend, mends
from launcher.plan.page import render
from launcher.plan.search import Proposal, Search, search
from launcher.plan.show import lines, search_lines, wrapped
from launcher.run_folder import RECIPE_FILE, RunFolder
from launcher.sources import find_recipe
from training.evaluation.config import EvaluationConfig

USUAL_GPU = "h100"
LEAST, MOST = 1e-6, 1e9
"""Of prices, bandwidths in GB/s and watts a GPU: nothing real lies outside, and within it all figures stay finite."""
MOST_WHOLE = 1_000_000
"""Nodes, and GPUs a node."""


@dataclass(frozen=True)
class Answer:
    """Everything that one call finds out."""

    estimate: Estimate | None
    """Of the layout as the recipe has it; None where a search was asked for and that layout cannot start."""
    refusal: str
    """Why it cannot; empty if it can."""
    mends: tuple[Mend, ...]
    found: Search | None
    command: str
    """`trestle train RECIPE` with the user's overrides."""
    notes: tuple[str, ...]


def parser() -> Parser:
    made = Parser(
        "plan",
        "Say what a training takes before anybody pays for it: memory of each rank, time of a step and what it goes\n"
        "into, days, energy, cost, checkpoints, epochs. By formula: nothing is started, no GPU needed. Any key of the\n"
        "recipe can be set with --SECTION.KEY VALUE, the layout too; --search tries all layouts, for some seconds.",
        "  trestle plan gpt3-175b --nodes 128 --gpus-per-node 8 --gpu h100\n"
        "  trestle plan gpt3-13b --nodes 8 --search --html plan.html\n"
        "  trestle plan gpt3-6.7b --nodes 4 --gpu a100 --parallel.tensor 2 --price-per-gpu-hour 2.50\n"
        "  trestle plan runs/first --gpu h200 --json",
        takes_overrides=True,
    )
    add_recipe(made, needed=False)
    made.add_argument(
        "--published",
        action="store_true",
        help="no plan and no RECIPE: predictions beside runs that were published (with --json as JSON)",
    )
    made.add_argument("--nodes", type=_whole, metavar="N", help="nodes of the cluster; cluster.nodes where left out")
    made.add_argument("--gpus-per-node", type=_whole, metavar="N", help="cluster.ranks_per_node where left out")
    made.add_argument(
        "--gpu", metavar="NAME", default=USUAL_GPU, help=f"{USUAL_GPU} where left out; of {', '.join(ACCELERATORS)}"
    )
    made.add_argument("--search", action="store_true", help="try all legal layouts, and show the ten fastest")
    made.add_argument("--json", action="store_true", help="all of it as JSON, in SI units")
    made.add_argument("--html", metavar="FILE", type=Path, help="write it as a page with pictures, in one file")
    prices = made.add_argument_group("what things cost (nothing is assumed), in any one currency")
    prices.add_argument("--price-per-gpu-hour", type=_amount, metavar="PRICE", help="of a GPU with all around it")
    prices.add_argument("--price-per-kwh", type=_amount, metavar="PRICE", help="of energy: watts a GPU, times the PUE")
    prices.add_argument(
        "--watts-per-gpu", type=_amount, metavar="W", help="of a GPU with its host's share; its board's where left out"
    )
    prices.add_argument(
        "--pue", type=_pue, default=1.0, help="energy of the whole site over that of its computers: 1 or more"
    )
    better = made.add_argument_group("what you know better")
    better.add_argument("--network-bandwidth", type=_amount, metavar="GB/S", help="of a GPU to other nodes, one way")
    better.add_argument(
        "--storage-bandwidth", type=_amount, metavar="GB/S", help="of all ranks together, for checkpoints"
    )
    better.add_argument(
        "--efficiency", metavar="FILE", type=Path, help="measured on your GPU by python -m tests.benchmarks.efficiency"
    )
    return made


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    if arguments.published:
        return _published(arguments, overrides)
    if arguments.recipe is None:
        raise UserError("the following arguments are required: RECIPE; see `trestle plan --help`")
    if arguments.html is not None:
        _check_place(arguments.html)
    source = find_recipe(arguments.recipe)
    asked = load_job(source, overrides)
    if arguments.print_config:
        print(asked.explained(), end="")
        return 0
    kind = accelerator(arguments.gpu)
    check_precision(kind, asked.recipe.training.precision)
    if arguments.network_bandwidth is not None:
        kind = replace(kind, network_bandwidth=1e9 * arguments.network_bandwidth)
    job = on_hardware(asked, arguments.nodes, arguments.gpus_per_node)
    answer = _answer(arguments, job, kind, _train(arguments.recipe, overrides, asked, job))
    if arguments.html is not None:
        _write(arguments.html, render(answer.estimate, answer.mends, answer.found, answer.command, answer.notes))
    if arguments.json:
        print(json.dumps(as_document(answer), indent=1, allow_nan=False))
    else:
        print("\n".join(_said(answer)))
        if arguments.html is not None:
            print(f"\nthe page: {arguments.html}")
    return 0


def _published(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Predictions beside published runs. Raises UserError for what says something about a plan."""
    of_a_plan = ("recipe", "nodes", "gpus_per_node", "search", "html", "efficiency")
    if overrides or any(getattr(arguments, name) for name in of_a_plan):
        raise UserError("--published is no plan: leave out RECIPE and all options but --json")
    if arguments.json:
        rows = [{**asdict(row), "error": row.error} for row in published.rows()]
        print(json.dumps({"published": rows}, indent=1, allow_nan=False))
    else:
        print("\n".join(published.lines()))
    return 0


def on_hardware(job: Job, nodes: int | None, gpus_per_node: int | None) -> Job:
    """The job on so many nodes and GPUs; as its cluster section says where nothing is given.

    What it is evaluated with is left out: it costs next to nothing, and its files need not be on this machine.
    """
    here, recipe = job.cluster, job.recipe
    cluster = replace(here, nodes=nodes or here.nodes, ranks_per_node=gpus_per_node or here.ranks_per_node)
    if cluster.min_nodes is not None:
        cluster.min_nodes = min(cluster.min_nodes, cluster.nodes)
    if recipe.evaluation.zero_shot or recipe.evaluation.probe:
        training = replace(recipe.training, validate_every=0)
        recipe = replace(recipe, evaluation=EvaluationConfig(), training=training)
    return replace(job, cluster=cluster, recipe=recipe)


def _train(recipe: str, overrides: Sequence[str], asked: Job, job: Job) -> str:
    """How to start what is planned: the user's words, and the nodes where they are others than the recipe's. A run that
    has checkpoints is resumed, since `train` refuses it.
    """
    keys = ("nodes", "min_nodes", "ranks_per_node")
    sizes = [{f"cluster.{key}": getattr(one.cluster, key) for key in keys} for one in (asked, job)]
    place = find_recipe(recipe)
    folder = place.parent if place.name == RECIPE_FILE else place
    words = ["resume", str(folder)] if RunFolder(folder).has_checkpoints() else ["train", recipe]
    return f"{shlex.join(['trestle', *words, *overrides])} {written(*sizes)}".rstrip()


def _answer(arguments: argparse.Namespace, job: Job, kind: Accelerator, command: str) -> Answer:
    prices = Prices(arguments.price_per_gpu_hour, arguments.price_per_kwh, arguments.pue, arguments.watts_per_gpu)
    options: dict[str, Any] = {"prices": prices}
    if arguments.efficiency is not None:
        options["efficiency"] = read_efficiency(arguments.efficiency, kind)
    if arguments.storage_bandwidth is not None:
        options["storage_bandwidth"] = 1e9 * arguments.storage_bandwidth
    refusal = ""
    try:
        check_anywhere(job)
    except Exception as error:
        if not arguments.search or getattr(error, "exit_code", None) != 2:
            raise
        refusal = str(error)
    notes = [note for note in (read_vocabulary(job),) if note]
    found = search(job, kind, **options) if arguments.search else None
    own = None if refusal else estimate(job, kind, **options)
    changes = mends(job, kind, **options) if own is not None and not own.fits and found is None else []
    return _with_epochs(job, Answer(own, refusal, tuple(changes), found, command, tuple(notes)))


def _with_epochs(job: Job, answer: Answer) -> Answer:
    """The same with how often each corpus is read, which no layout changes; shards are looked at once."""
    found = answer.found
    proposed = [] if found is None else [*found.proposals, found.own, found.nearest]
    estimates = [answer.estimate, *(one.estimate for one in proposed if one is not None)]
    epochs = next((epochs_of(job, one.training.tokens) for one in estimates if one is not None), None)
    if epochs is None:
        return answer

    def known(one: Proposal | None) -> Proposal | None:
        return None if one is None else replace(one, estimate=replace(one.estimate, epochs=epochs))

    if found is not None:
        proposals = tuple(replace(one, estimate=replace(one.estimate, epochs=epochs)) for one in found.proposals)
        found = replace(found, proposals=proposals, own=known(found.own), nearest=known(found.nearest))
    own = None if answer.estimate is None else replace(answer.estimate, epochs=epochs)
    return replace(answer, estimate=own, found=found)


def _said(answer: Answer) -> list[str]:
    said = [] if answer.found is None else search_lines(answer.found, answer.command)
    if answer.refusal:
        said += ["", *wrapped(f"the layout of the recipe itself cannot start there: {answer.refusal}")]
    elif answer.found is None and answer.estimate is not None:
        said = lines(answer.estimate, answer.mends)
    return [*said, *answer.notes]


def as_document(answer: Answer) -> dict[str, Any]:
    """All of an answer as plain values: names of the dataclasses' fields, SI units."""
    document: dict[str, Any] = {"plan": None if answer.estimate is None else _plain(answer.estimate)}
    document["refusal"] = answer.refusal
    document["would_fit"] = [asdict(mend) for mend in answer.mends]
    document["search"] = None
    if answer.found is not None:
        found = answer.found
        document["search"] = {
            "legal": found.legal,
            "fitting": found.fitting,
            "refused": found.refused,
            "command": answer.command,
            "proposals": [_proposal(one) for one in found.proposals],
            "own": None if found.own is None else _proposal(found.own),
            "nearest": None if found.nearest is None else _proposal(found.nearest),
        }
    document["notes"] = list(answer.notes)
    return document


def _plain(estimate_: Estimate) -> dict[str, Any]:
    """With each stage's peak, which is a sum, and what of a GPU's memory may be filled."""
    document = asdict(estimate_)
    document["accelerator"]["usable_bytes"] = estimate_.accelerator.usable_bytes
    for plain, stage in zip(document["stages"], estimate_.stages, strict=True):
        plain["memory"]["peak"] = stage.memory.peak
    return document


def _proposal(one: Proposal) -> dict[str, Any]:
    return {"overrides": one.overrides, "loses_by": one.loses_by, "plan": _plain(one.estimate)}


def _check_place(path: Path) -> None:
    """Before anything takes time."""
    if path.is_dir():
        raise UserError(f"--html {path} is a folder; name a file in it, such as {path / 'plan.html'}")
    if not path.parent.is_dir():
        raise UserError(f"--html {path}: there is no folder {path.parent}; make it first")


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise EnvironmentFailure(f"--html {path} could not be written: {error.strerror}") from error


def _whole(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_WHOLE:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1 to {MOST_WHOLE:,}")
    return int(text)


def _amount(text: str) -> float:
    value = _number(text)
    if not LEAST <= value <= MOST:
        raise argparse.ArgumentTypeError(f"{text} is not between {LEAST:f} and {MOST:,.0f}")
    return value


def _pue(text: str) -> float:
    value = _number(text)
    if not 1 <= value <= MOST:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more: a site takes what its computers take, at least")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no number") from None
