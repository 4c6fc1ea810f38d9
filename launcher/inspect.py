"""`trestle inspect PATH`: what is in a run, a checkpoint, a shard set or a mix."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.arguments import Parser
from launcher.errors import UserError
from launcher.run_folder import RunFolder
from launcher.tables import size, table

if TYPE_CHECKING:
    from data_pipeline.config import DataConfig
    from training.checkpoint.inspect import Summary


def parser() -> Parser:
    made = Parser(
        "inspect",
        "Show what is in a run's folder (figures, checkpoints and their health), a checkpoint (its tensors),\n"
        "a shard set, or a mix.yaml (how often each corpus is read). Files are checked against their checksums;\n"
        "a damaged one makes the exit code 1.",
        "  trestle inspect runs/demo\n"
        "  trestle inspect runs/demo/checkpoints/step-00000300\n"
        "  trestle inspect shards/mix.yaml --tokens 300B",
    )
    made.add_argument("path", metavar="PATH", help="a run's folder, a checkpoint, a shard set, or a mix.yaml")
    made.add_argument("--tokens", default=None, help="of a mix: how many tokens to train on, such as 300B")
    made.add_argument("--quick", action="store_true", help="read no tensors: leave out minimum, maximum, mean")
    return made


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    path = Path(arguments.path)
    if arguments.tokens is not None and not path.is_file():
        raise UserError(f"--tokens is for a mix.yaml, which {path} is not")
    if path.is_file():
        return _mix(path, arguments.tokens)
    if (path / "recipe.yaml").is_file():
        return _run(RunFolder(path))
    if (path / "index.npy").is_file() or (path / "00000.tar").is_file():
        return _shards(path)
    if path.name.startswith("step-") or (path / "manifest.json").is_file():
        return _checkpoint(path, not arguments.quick)
    what = "is neither a run, a checkpoint, a shard set nor a mix.yaml" if path.exists() else "does not exist"
    raise UserError(f"{path} {what}")


def _run(folder: RunFolder) -> int:
    from training.checkpoint import candidates
    from training.checkpoint.inspect import summarise

    figures = folder.last_figures()
    shown = {k: v for k, v in figures.items() if not isinstance(v, str)}
    if shown:
        print(table(("newest figures", ""), list(shown.items())) + "\n")
    summaries = [summarise(path, statistics=False) for path in candidates(folder.checkpoints)]
    rows = [
        (s.path.name, size(s.nbytes), s.world_size, s.state.get("tokens"), s.state.get("validation_loss"), s.health)
        for s in summaries
    ]
    if rows:
        print(table(("checkpoint", "size", "ranks", "tokens", "validation loss", "health"), rows))
    else:
        print(f"{folder.path} has no checkpoint yet")
    return 1 if any(s.damages for s in summaries) else 0


def _checkpoint(path: Path, statistics: bool) -> int:
    from training.checkpoint.inspect import summarise

    if not path.is_dir():
        raise UserError(f"{path} does not exist")
    summary = summarise(path, statistics=statistics)
    rows = [
        (
            row.name,
            "x".join(map(str, row.shape)),
            size(row.nbytes),
            row.minimum,
            row.maximum,
            row.mean,
            None if row.nan is None or row.infinite is None else row.nan + row.infinite,
        )
        for row in summary.rows
    ]
    if rows:
        print(table(("tensor", "shape", "size", "minimum", "maximum", "mean", "not finite"), rows) + "\n")
    print(_headline(summary))
    return 1 if summary.damages else 0


def _headline(summary: Summary) -> str:
    if summary.step is None:
        return f"{summary.path}: {summary.health}"
    return (
        f"{summary.path}: step {summary.step:,}, {summary.parameters:,} parameters, {size(summary.nbytes)} "
        f"from {summary.world_size} ranks; {summary.health}"
    )


def _shards(path: Path) -> int:
    from data_pipeline.errors import DamagedShard
    from data_pipeline.shard_reader import ShardSet

    shards = ShardSet(path)
    facts = {
        "documents": shards.manifest["documents"],
        "text": size(shards.bytes),
        "tokens": shards.tokens,
        "bytes a token": shards.bytes / shards.tokens,
        "samples": shards.samples,
        "sequence length": shards.sequence_length,
        "vocabulary": shards.vocab_size,
        "tars": len(shards.manifest["tars"]),
        "tokenizer": shards.tokenizer_sha256[:12],
    }
    print(table((shards.name, ""), list(facts.items())))
    try:
        shards.verify()
    except DamagedShard as damage:
        print(f"health: {damage}")
        return 1
    print("health: verified")
    return 0


def _mix(path: Path, tokens: str | None) -> int:
    from data_pipeline.batching import Duration
    from data_pipeline.config import DataConfig
    from data_pipeline.shard_reader import ShardSet
    from data_pipeline.stream import Stream
    from training.overrides import read_yaml
    from training.sections import parse_section

    document = read_yaml(path)
    if "mix" not in document and not isinstance(document.get("data"), dict):
        raise UserError(f"{path} has no `mix:`; name a mix.yaml, or a recipe with a `data:` section")
    config: DataConfig = parse_section(DataConfig, document if "mix" in document else document["data"], "data")
    stream = Stream(config, seed=0)
    wanted = (
        Duration.parse(f"{tokens} tokens" if tokens and "token" not in tokens else tokens).tokens if tokens else None
    )
    samples = None if wanted is None else wanted // stream.sequence_length
    epochs = {} if samples is None else stream.epochs(samples)
    rows = []
    for source in config.mix:
        shards = ShardSet(source.shards)
        weight = stream.weights[shards.name]
        drawn = None if wanted is None else round(epochs[shards.name] * shards.samples * shards.sequence_length)
        rows.append((shards.name, weight, shards.tokens, shards.samples, drawn, epochs.get(shards.name)))
    print(table(("corpus", "weight", "tokens", "samples", "tokens read", "epochs"), rows))
    if wanted is None:
        print("how often each is read in a run: --tokens 300B")
    return 0
