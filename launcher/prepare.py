"""`trestle prepare RECIPE`: raw text, or pictures with captions, to tokenizer and shards."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.config import ClusterConfig
from data_pipeline.errors import BadCorpus
from data_pipeline.pairs.recipe import PairPrepareConfig
from data_pipeline.recipe import PrepareConfig
from launcher.arguments import Parser, add_recipe
from launcher.errors import UserError
from launcher.explain import comments
from launcher.sources import SHIPPED, find_recipe
from launcher.tables import size, table
from training.overrides import apply_overrides, read_yaml
from training.recipe import dump_yaml
from training.sections import parse_section, to_plain

if TYPE_CHECKING:
    from data_pipeline.pairs.prepare import PairPrepareResult
    from data_pipeline.prepare import PrepareResult

Result = TypeVar("Result")

_MADE_BY = {SHIPPED / "demo-clip.yaml": ("digits", "python -m launcher.digits digits")}
"""Shipped recipes whose raw data no installation has: the folder they read, and the command that writes it."""


def parser() -> Parser:
    made = Parser(
        "prepare",
        "Clean, deduplicate and tokenise the corpora of a recipe into shard sets, with a tokenizer.model and a\n"
        "mix.yaml beside them: text (`corpora:`), or pictures with captions (`pairs:`). Takes a file that holds what\n"
        "to prepare, or a recipe with a `prepare:` section.\n"
        "Any key can be set: --prepare.KEY VALUE. Works on all cores of this machine, or on a Ray cluster whose nodes\n"
        "see the sources and the output under the same paths. Stopped or killed, it goes on where it was when the\n"
        "same command is run again. report.html says what was kept and dropped, and why.",
        "  trestle prepare demo\n"
        "  trestle prepare corpora.yaml --prepare.output /data/shards --prepare.tokenizer.vocab_size 32768\n"
        "  trestle prepare pairs.yaml --prepare.tokenizer.clip_merges bpe_simple_vocab_16e6.txt.gz\n"
        "  trestle prepare corpora.yaml --cluster.address head:6379",
        takes_overrides=True,
    )
    add_recipe(made)
    return made


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    source = find_recipe(arguments.recipe)
    config, cluster = load_prepare(source, overrides)
    if arguments.print_config:
        print(dump_yaml({"prepare": to_plain(config)}, comments({"prepare": type(config)})), end="")
        return 0
    try:
        result = _show_pairs(config, cluster) if isinstance(config, PairPrepareConfig) else _show_text(config, cluster)
    except BadCorpus as error:
        raise BadCorpus(f"{error}{how_to_make(source)}") from error
    print(
        f"in {result.output}, with a tokenizer of {result.vocab_size:,} tokens, in {sum(result.seconds.values()):.1f} s"
    )
    trains = "model" in read_yaml(source) and not overrides
    with_what = arguments.recipe if trains else f"RECIPE --data {Path(result.output) / 'mix.yaml'}"
    print(f"report: {Path(result.output) / 'report.html'}")
    print(f"next: trestle train {with_what}")
    return 0


def how_to_make(recipe: Path) -> str:
    """What to add to a message that something is missing: the way to a shipped recipe's raw data; else nothing."""
    folder, command = _MADE_BY.get(recipe, ("", ""))
    return f"; `{command}` writes what this recipe reads" if command and not Path(folder).exists() else ""


def _show_text(config: PrepareConfig, cluster: ClusterConfig) -> PrepareResult:
    from data_pipeline.prepare import prepare

    result = _prepare(prepare, config, cluster)
    rows = [
        (made.name, made.documents, size(made.bytes), made.tokens, made.samples)
        for corpus in result.corpora
        for made in (corpus.training, corpus.validation)
        if made is not None
    ]
    print(table(("shard set", "documents", "text", "tokens", "samples"), rows))
    return result


def _show_pairs(config: PairPrepareConfig, cluster: ClusterConfig) -> PairPrepareResult:
    from data_pipeline.pairs.prepare import prepare_pairs

    result = _prepare(prepare_pairs, config, cluster)
    rows = [
        (made.name, made.samples, size(made.bytes), size(made.caption_bytes))
        for corpus in result.corpora
        for made in (corpus.training, corpus.validation)
        if made is not None
    ]
    print(table(("shard set", "pairs", "pictures", "captions"), rows))
    return result


def _prepare(prepare: Callable[..., Result], config: Any, cluster: ClusterConfig) -> Result:
    """On one core in this process, else over Ray: a private one, or the cluster that `cluster.address` names."""

    def say(line: str) -> None:
        print(line, flush=True)

    cores = config.workers or len(os.sched_getaffinity(0))
    if cluster.address is None and cores == 1:
        return prepare(config, say)
    from cluster.session import open_session
    from data_pipeline.prepare.ray_tasks import RayTasks

    with open_session(cluster, cores, on_close=lambda: None):
        return prepare(config, say, RayTasks(config.workers))


def load_prepare(
    source: Path, overrides: Sequence[str]
) -> tuple[PrepareConfig, ClusterConfig] | tuple[PairPrepareConfig, ClusterConfig]:
    """What to prepare, from a file of its own or a recipe's `prepare:` section, and where. Raises UserError,
    RecipeError.
    """
    document = read_yaml(source if source.is_file() else source / "recipe.yaml")
    section = document if "corpora" in document or "pairs" in document else document.get("prepare")
    if section is None:
        raise UserError(
            f"{source} says nothing about what to prepare: it has none of `corpora:`, `pairs:` and a `prepare:` section"
        )
    if isinstance(section, dict) and "corpora" in section and "pairs" in section:
        raise UserError(
            f"{source} has both `corpora:` (text) and `pairs:` (pictures with captions): prepare them one by one, each "
            "with a recipe and an output of its own"
        )
    allowed = ("--prepare.", "--prepare=", "--cluster.address", "--cluster.node_address")
    foreign = next((o for o in overrides if not o.startswith(allowed)), None)
    if foreign is not None:
        given = foreign.partition("=")[0]
        raise UserError(f"trestle prepare takes --prepare.KEY VALUE and --cluster.address HOST:PORT, not {given}")
    pairs = isinstance(section, dict) and "pairs" in section
    sections = {"prepare": PairPrepareConfig if pairs else PrepareConfig, "cluster": ClusterConfig}
    changed = apply_overrides({"prepare": section, "cluster": {}}, overrides, sections)
    cluster = parse_section(ClusterConfig, changed["cluster"], "cluster")
    cluster.check(tensor_parallel=1)
    if pairs:
        return parse_section(PairPrepareConfig, changed["prepare"], "prepare"), cluster
    return parse_section(PrepareConfig, changed["prepare"], "prepare"), cluster
