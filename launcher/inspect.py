"""`trestle inspect PATH`: what is in a run, a checkpoint, a shard set or a mix."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.locations import is_remote
from launcher.arguments import Parser
from launcher.errors import UserError
from launcher.mixes import show_mix
from launcher.remote_run import is_url, open_checkpoint
from launcher.run_folder import RunFolder
from launcher.sources import find_file
from launcher.tables import size, table

if TYPE_CHECKING:
    from data_pipeline.pairs.reader import PairSet
    from data_pipeline.shard_reader import ShardSet
    from training.checkpoint.inspect import Summary

PROGRESS_SECONDS = 5.0


def parser() -> Parser:
    made = Parser(
        "inspect",
        "Show what is in a run's folder (figures, checkpoints and their health), a checkpoint (its tensors),\n"
        "a shard set in a folder or behind a URL, or a mix.yaml (how often each corpus is read, by sizes that may be\n"
        "declared only). Files are checked against their checksums; a damaged one makes the exit code 1.",
        "  trestle inspect runs/demo\n"
        "  trestle inspect runs/demo/checkpoints/step-00000300\n"
        "  trestle inspect shards/mix.yaml --tokens 300B\n"
        "  trestle inspect gpt3-mix --tokens 300B\n"
        "  trestle inspect shards-clip/mix.yaml --pairs 12.8B\n"
        "  trestle inspect s3://bucket/shards/web\n"
        "  trestle inspect s3://bucket/prefix/demo/checkpoints/step-00000300",
    )
    made.add_argument("path", metavar="PATH", help="a run's folder, a checkpoint, a shard set, or a mix.yaml")
    made.add_argument("--tokens", default=None, help="of a mix: how many tokens to train on, such as 300B")
    made.add_argument("--pairs", default=None, help="of a mix of pictures with captions: how many pairs to train on")
    made.add_argument("--quick", action="store_true", help="read no tensors: leave out minimum, maximum, mean")
    return made


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    if is_url(arguments.path):
        from training.checkpoint.remote import is_checkpoint_url

        if is_checkpoint_url(arguments.path):
            return _show(_remote_summary(arguments.path, not arguments.quick))
    path = find_file(arguments.path) or Path(arguments.path)
    for name in ("tokens", "pairs"):
        if getattr(arguments, name) is not None and not path.is_file():
            raise UserError(f"--{name} is for a mix.yaml, which {arguments.path} is not")
    if path.is_file():
        return show_mix(path, arguments.tokens, arguments.pairs)
    if (path / "recipe.yaml").is_file():
        return _run(RunFolder(path))
    if (path / "index.npy").is_file() or (path / "00000.tar").is_file() or is_remote(arguments.path):
        return _shards(arguments.path)
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
    paths = candidates(folder.checkpoints)
    summaries = [summarise(path, statistics=False) for path in paths]
    rows = [
        (path.name, size(s.nbytes), s.world_size, s.state.get("tokens"), s.state.get("validation_loss"), s.health)
        for path, s in zip(paths, summaries, strict=True)
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
    return _show(summarise(path, statistics=statistics))


def _remote_summary(url: str, statistics: bool) -> Summary:
    from training.checkpoint.inspect import summarise

    remote, name = open_checkpoint(url)
    if not remote.is_whole(name):
        raise UserError(f"{url} does not exist, or has not arrived whole")
    return summarise(remote.source(name), statistics=statistics)


def _show(summary: Summary) -> int:
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


def _shards(location: str) -> int:
    from data_pipeline.errors import DamagedShard

    shards, facts = _opened(location)
    print(table((shards.name, ""), [*facts.items(), ("tokenizer", shards.tokenizer_sha256[:12])]))
    try:
        shards.verify(_Progress(shards.members))
    except DamagedShard as damage:
        print(f"health: {damage}")
        return 1
    print("health: verified")
    return 0


def _opened(location: str) -> tuple[ShardSet | PairSet, dict[str, object]]:
    """A shard set of either kind, and what there is to say of it. Raises BadShards."""
    from data_pipeline.pairs.reader import PairSet
    from data_pipeline.pairs.shards import KIND
    from data_pipeline.shard_reader import ShardSet, kind_of

    if kind_of(location) == KIND:
        pairs = PairSet(location)
        manifest = pairs.manifest
        return pairs, {
            "pairs": pairs.samples,
            "pictures": size(manifest["picture_bytes"]),
            "captions": size(manifest["caption_bytes"]),
            "tars": len(manifest["tars"]),
        }
    shards = ShardSet(location)
    return shards, {
        "documents": shards.manifest["documents"],
        "text": size(shards.bytes),
        "tokens": shards.tokens,
        "bytes a token": shards.bytes / shards.tokens,
        "samples": shards.samples,
        "sequence length": shards.sequence_length,
        "vocabulary": shards.vocab_size,
        "tars": len(shards.manifest["tars"]),
    }


class _Progress:
    """Says now and then how many members are verified."""

    def __init__(self, members: int) -> None:
        self._members, self._last = members, time.monotonic()

    def __call__(self, done: int) -> None:
        if time.monotonic() - self._last >= PROGRESS_SECONDS:
            self._last = time.monotonic()
            print(f"verified {done:,} of {self._members:,} members", file=sys.stderr, flush=True)
