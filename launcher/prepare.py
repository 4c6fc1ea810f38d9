"""`trestle prepare RECIPE`: raw text to tokenizer and shards."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.config import PrepareConfig
from launcher.arguments import Parser, add_recipe
from launcher.errors import UserError
from launcher.explain import comments
from launcher.sources import find_recipe
from launcher.tables import size, table
from training.overrides import apply_overrides, read_yaml
from training.recipe import dump_yaml
from training.sections import parse_section, to_plain


def parser() -> Parser:
    made = Parser(
        "prepare",
        "Clean, deduplicate and tokenise the corpora of a recipe into shard sets, with a tokenizer.model and a\n"
        "mix.yaml beside them. Takes a file that holds what to prepare, or a recipe with a `prepare:` section.\n"
        "Any key can be set: --prepare.KEY VALUE.",
        "  trestle prepare demo\n"
        "  trestle prepare corpora.yaml --prepare.output /data/shards --prepare.tokenizer.vocab_size 32768",
        takes_overrides=True,
    )
    add_recipe(made)
    return made


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    source = find_recipe(arguments.recipe)
    config = load_prepare(source, overrides)
    if arguments.print_config:
        print(dump_yaml({"prepare": to_plain(config)}, comments({"prepare": PrepareConfig})), end="")
        return 0
    from data_pipeline.prepare import prepare

    result = prepare(config, lambda line: print(line, flush=True))
    rows = [
        (made.name, made.documents, size(made.bytes), made.tokens, made.samples)
        for corpus in result.corpora
        for made in (corpus.training, corpus.validation)
        if made is not None
    ]
    print(table(("shard set", "documents", "text", "tokens", "samples"), rows))
    print(
        f"in {result.output}, with a tokenizer of {result.vocab_size:,} tokens, in {sum(result.seconds.values()):.1f} s"
    )
    trains = "model" in read_yaml(source) and not overrides
    with_what = arguments.recipe if trains else f"RECIPE --data {Path(result.output) / 'mix.yaml'}"
    print(f"next: trestle train {with_what}")
    return 0


def load_prepare(source: Path, overrides: Sequence[str]) -> PrepareConfig:
    """What to prepare, from a file of its own or a recipe's `prepare:` section. Raises UserError, RecipeError."""
    document = read_yaml(source if source.is_file() else source / "recipe.yaml")
    section = document if "corpora" in document else document.get("prepare")
    if section is None:
        raise UserError(
            f"{source} says nothing about what to prepare: it has neither `corpora:` nor a `prepare:` section"
        )
    foreign = next((o for o in overrides if not o.startswith(("--prepare.", "--prepare="))), None)
    if foreign is not None:
        raise UserError(f"trestle prepare takes --prepare.KEY VALUE, not {foreign.partition('=')[0]}")
    sections = {"prepare": PrepareConfig}
    return parse_section(
        PrepareConfig, apply_overrides({"prepare": section}, overrides, sections)["prepare"], "prepare"
    )
