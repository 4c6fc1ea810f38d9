"""What a mix comes to: how much is read of each corpus in a run of so many tokens, or pairs, and how often.

A corpus of text whose shards are not there yet counts with the size that the mix declares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.errors import UserError
from launcher.tables import table

if TYPE_CHECKING:
    from data_pipeline.config import DataConfig, ShardSource
    from data_pipeline.shard_reader import ShardSet

_USUAL_LENGTH = 2048
"""Tokens of a sample where nothing tells: GPT-3's. Epochs hardly depend on it."""
_USUAL_CAPTION = 77
"""Tokens of a caption where nothing tells: CLIP's. A curriculum is written in tokens."""


@dataclass(frozen=True)
class _Size:
    name: str
    tokens: int
    samples: int | None
    """None where the size is only declared."""


def show_mix(path: Path, tokens: str | None, pairs: str | None) -> int:
    """Print the mix in a file, a mix.yaml or a recipe; the exit code. Raises UserError, BadShards, BadConfig."""
    from data_pipeline.config import DataConfig
    from data_pipeline.pairs.shards import KIND
    from training.overrides import read_yaml
    from training.sections import parse_section

    document = read_yaml(path)
    if "mix" not in document and not isinstance(document.get("data"), dict):
        raise UserError(f"{path} has no `mix:`; name a mix.yaml, or a recipe with a `data:` section")
    config: DataConfig = parse_section(DataConfig, document if "mix" in document else document["data"], "data")
    if not config.mix:
        raise UserError("data.mix is empty: name shards")
    kinds = [_kind(source, config) for source in config.mix]
    if KIND in kinds:
        if tokens is not None:
            raise UserError(f"{path} is a mix of pairs, which are counted as such: --pairs 12.8B in place of --tokens")
        return _show_pairs(config, document, None if pairs is None else _count(pairs, "pairs", "--pairs"))
    if pairs is not None:
        raise UserError(f"{path} is no mix of image-text shards that are there: --tokens 300B in place of --pairs")
    there = [kind is not None for kind in kinds]
    return _show_text(config, document, there, None if tokens is None else _count(tokens, "tokens", "--tokens"))


def epochs(config: DataConfig, length: int, samples: int) -> dict[str, float] | None:
    """How often each corpus of a mix is read in a run of so many samples of `length` tokens; None where a corpus is
    neither there nor declares its size. Raises BadShards, BadConfig.
    """
    from data_pipeline.pairs.reader import PairSet
    from data_pipeline.pairs.shards import KIND

    kinds = [_kind(source, config) for source in config.mix]
    missing = [kind is None for kind in kinds]
    if not kinds or any(gone and source.tokens is None for gone, source in zip(missing, config.mix, strict=True)):
        return None
    if KIND in kinds:
        if any(missing):
            return None
        pairs = [PairSet(source.shards, config.cache) for source in config.mix]
        sizes = [(shards.name, float(shards.samples)) for shards in pairs]
    else:
        found, length = _sizes(config, {"model": {"sequence_length": length}}, [not gone for gone in missing])
        sizes = [(size.name, size.samples or size.tokens / length) for size in found]
    names = [name for name, _ in sizes]
    segments, _ = _segments(config, names, length)
    return {name: drawn / size for (name, size), drawn in zip(sizes, _drawn(segments, samples), strict=True)}


def _kind(source: ShardSource, config: DataConfig) -> str | None:
    """What the samples of a source are, None where it is not there yet."""
    from data_pipeline.shard_reader import kind_of
    from data_pipeline.shard_store import open_store

    try:
        open_store(source.shards, config.cache).manifest()
    except OSError:
        return None
    return kind_of(source.shards, config.cache)


def _show_text(config: DataConfig, document: dict[str, Any], there: Sequence[bool], wanted: int | None) -> int:
    sizes, length = _sizes(config, document, there)
    names = [size.name for size in sizes]
    segments, weights = _segments(config, names, length)
    read = None if wanted is None else [count * length for count in _drawn(segments, wanted // length)]
    rows = []
    for number, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        drawn = None if read is None else read[number]
        whole = size.tokens if size.samples is None else size.samples * length
        samples = "declared" if size.samples is None else size.samples
        rows.append((size.name, weight, size.tokens, samples, drawn, None if drawn is None else drawn / whole))
    print(table(("corpus", "weight", "tokens", "samples", "tokens read", "epochs"), rows))
    if config.curriculum:
        heading = ("curriculum: from token", *names)
        print("\n" + table(heading, [(f"{first * length:,}", *shares) for first, shares in segments]))
    if wanted is None:
        print("how often each is read in a run: --tokens 300B")
    return 0


def _show_pairs(config: DataConfig, document: dict[str, Any], wanted: int | None) -> int:
    """Of shard sets that are all there, since a declared size is one in tokens. Raises BadShards, BadConfig."""
    from data_pipeline.pairs.reader import PairSet
    from data_pipeline.validation_set import fitting

    sets = fitting([PairSet(source.shards, config.cache) for source in config.mix], "data.mix")
    names = [shards.name for shards in sets]
    length = _length(document, "context_length", _USUAL_CAPTION)
    segments, weights = _segments(config, names, length)
    drawn = [None] * len(sets) if wanted is None else _drawn(segments, wanted)
    total = sum(shards.samples for shards in sets)
    rows = [
        (s.name, weight, s.samples, s.samples / total, count, None if count is None else count / s.samples)
        for s, weight, count in zip(sets, weights, drawn, strict=True)
    ]
    print(table(("corpus", "weight", "pairs", "share of pairs", "pairs read", "epochs"), rows))
    if config.curriculum:
        heading = (f"curriculum: from pair, of {length} tokens", *names)
        print("\n" + table(heading, [(f"{first:,}", *shares) for first, shares in segments]))
    if wanted is None:
        print("how often each is read in a run: --pairs 12.8B")
    return 0


def _segments(
    config: DataConfig, names: Sequence[str], length: int
) -> tuple[list[tuple[int, list[float]]], list[float]]:
    """First samples and normalised weights of the mix and its curriculum, and those of the mix. Raises BadConfig."""
    from data_pipeline.eras import normalised, segments_of

    weights = normalised([source.weight for source in config.mix])
    changes = segments_of(config, names, length)
    segments = [(s["from"], [s["weights"][name] for name in names]) for s in changes]
    if not segments or segments[0][0] > 0:
        segments.insert(0, (0, weights))
    return segments, weights


def _drawn(segments: list[tuple[int, list[float]]], samples: int) -> list[int]:
    """How many of the first `samples` are of each corpus."""
    from data_pipeline.mixing import Curriculum

    return list(Curriculum(segments, seed=0).counts(samples))


def _sizes(config: DataConfig, document: dict[str, Any], there: Sequence[bool]) -> tuple[list[_Size], int]:
    """The corpora's sizes and the tokens of a sample. Raises BadShards for what is neither there nor declared."""
    from data_pipeline.shard_reader import ShardSet
    from data_pipeline.validation_set import fitting

    opened: list[ShardSet | None] = [
        ShardSet(source.shards, config.cache) if found or source.tokens is None else None
        for source, found in zip(config.mix, there, strict=True)
    ]
    sets = [shards for shards in opened if shards is not None]
    if sets:
        fitting(sets, "data.mix")
        length = sets[0].sequence_length
    else:
        length = _length(document, "sequence_length", _USUAL_LENGTH)
    sizes = []
    for number, (source, shards) in enumerate(zip(config.mix, opened, strict=True)):
        if shards is None:
            name = source.shards.rstrip("/").rpartition("/")[2]
            sizes.append(_Size(name, _count(source.tokens or "", "tokens", f"data.mix.{number}.tokens"), None))
        else:
            sizes.append(_Size(shards.name, shards.tokens, shards.samples))
    return sizes, length


def _length(document: dict[str, Any], key: str, usual: int) -> int:
    """Tokens of a sample, if the file is a recipe that says so."""
    model = document.get("model")
    return int(model.get(key, usual)) if isinstance(model, dict) else usual


def _count(text: str, what: str, key: str) -> int:
    """The number in "300B" or "300B tokens"; `what`: tokens, pairs. Raises UserError."""
    from data_pipeline.batching import Duration
    from data_pipeline.errors import BadConfig

    try:
        found = Duration.parse(f"{text.strip().removesuffix(what).removesuffix(what[:-1])} tokens").tokens
    except BadConfig:
        found = None
    if not found:
        raise UserError(f'{key} is "{text}"; write {what}, such as {"300B" if what == "tokens" else "12.8B"}')
    return found
