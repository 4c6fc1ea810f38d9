"""What a mix comes to: how much is read of each corpus in a run of so many tokens, and how often.

A corpus whose shards are not there yet counts with the size that the mix declares.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.errors import UserError
from launcher.tables import table

if TYPE_CHECKING:
    from data_pipeline.config import DataConfig
    from data_pipeline.shard_reader import ShardSet

_USUAL_LENGTH = 2048
"""Tokens of a sample where nothing tells: GPT-3's. Epochs hardly depend on it."""


@dataclass(frozen=True)
class _Size:
    name: str
    tokens: int
    samples: int | None
    """None where the size is only declared."""


def show_mix(path: Path, tokens: str | None) -> int:
    """Print the mix in a file, a mix.yaml or a recipe; the exit code. Raises UserError, BadShards, BadConfig."""
    from data_pipeline.config import DataConfig
    from data_pipeline.eras import normalised, segments_of
    from data_pipeline.mixing import Curriculum
    from training.overrides import read_yaml
    from training.sections import parse_section

    document = read_yaml(path)
    if "mix" not in document and not isinstance(document.get("data"), dict):
        raise UserError(f"{path} has no `mix:`; name a mix.yaml, or a recipe with a `data:` section")
    config: DataConfig = parse_section(DataConfig, document if "mix" in document else document["data"], "data")
    sizes, length = _sizes(config, document)
    names = [size.name for size in sizes]
    weights = normalised([source.weight for source in config.mix])
    changes = segments_of(config, names, length)
    segments = [(s["from"], [s["weights"][name] for name in names]) for s in changes]
    if not segments or segments[0][0] > 0:
        segments.insert(0, (0, weights))
    curriculum = Curriculum(segments, seed=0)
    wanted = None if tokens is None else _tokens(tokens, "--tokens")
    read = None if wanted is None else [count * length for count in curriculum.counts(wanted // length)]
    rows = []
    for number, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        drawn = None if read is None else read[number]
        whole = size.tokens if size.samples is None else size.samples * length
        samples = "declared" if size.samples is None else size.samples
        rows.append((size.name, weight, size.tokens, samples, drawn, None if drawn is None else drawn / whole))
    print(table(("corpus", "weight", "tokens", "samples", "tokens read", "epochs"), rows))
    if changes:
        heading = ("curriculum: from token", *names)
        print("\n" + table(heading, [(f"{first * length:,}", *shares) for first, shares in segments]))
    if wanted is None:
        print("how often each is read in a run: --tokens 300B")
    return 0


def _sizes(config: DataConfig, document: dict[str, Any]) -> tuple[list[_Size], int]:
    """The corpora's sizes and the tokens of a sample."""
    from data_pipeline.errors import BadShards
    from data_pipeline.shard_reader import ShardSet
    from data_pipeline.validation_set import open_sets

    if not config.mix:
        raise UserError("data.mix is empty: name shards")
    there: dict[int, ShardSet] = {}
    for number, source in enumerate(config.mix):
        try:
            there[number] = ShardSet(source.shards, config.cache)
        except BadShards:
            if source.tokens is None:
                raise
    if there:
        open_sets([config.mix[number] for number in there], "data.mix", config.cache)
        length = next(iter(there.values())).sequence_length
    else:
        model = document.get("model")
        length = model.get("sequence_length", _USUAL_LENGTH) if isinstance(model, dict) else _USUAL_LENGTH
    sizes = []
    for number, source in enumerate(config.mix):
        shards = there.get(number)
        if shards is None:
            name = source.shards.rstrip("/").rpartition("/")[2]
            sizes.append(_Size(name, _tokens(source.tokens or "", f"data.mix.{number}.tokens"), None))
        else:
            sizes.append(_Size(shards.name, shards.tokens, shards.samples))
    return sizes, length


def _tokens(text: str, key: str) -> int:
    from data_pipeline.batching import Duration
    from data_pipeline.errors import BadConfig

    try:
        tokens = Duration.parse(text if "token" in text else f"{text} tokens").tokens
    except BadConfig:
        tokens = None
    if not tokens:
        raise UserError(f'{key} is "{text}"; write tokens, such as 300B')
    return tokens
