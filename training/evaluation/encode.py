"""Features of held-out pairs, computed by all data-parallel ranks together and known to each of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from training.errors import Diverged
from training.evaluation.retrieval import distinct

Embed = Callable[
    [torch.Tensor | None, torch.Tensor | None],
    tuple[torch.Tensor | None, torch.Tensor | None],
]
"""(pictures uint8 `[n, 3, H, W]` or None, caption tokens int64 `[n, context]` or None) → their features `[n, d]`, None
for what is None; without gradients or dropout. Called equally often on every rank, with as many rows.
"""


class PairArrays(Protocol):
    """Decoded pairs."""

    @property
    def images(self) -> NDArray[np.uint8]:
        """[n, 3, H, W]"""

    @property
    def tokens(self) -> NDArray[np.int64]:
        """[n, context]"""


class Pairs(Protocol):
    """Held-out pairs, in order and without augmentation."""

    def __len__(self) -> int: ...

    def batch(self, start: int, size: int) -> PairArrays: ...

    def captions(self, start: int, size: int) -> list[str]: ...


class Tokenizer(Protocol):
    """Captions to tokens, `[n, context_length]`."""

    def encode(self, captions: Sequence[str], context_length: int) -> NDArray[np.int64]: ...


_DECODED_AT_ONCE = 64


@dataclass(frozen=True)
class Team:
    """The data-parallel ranks that encode together. `group` None: this process is alone."""

    index: int = 0
    count: int = 1
    group: dist.ProcessGroup | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where pictures and tokens go, and what `group` can send from."""

    def slice_of(self, size: int, index: int | None = None) -> slice:
        """This rank's (or rank `index`'s) contiguous part of `size` things."""
        here = self.index if index is None else index
        return slice(size * here // self.count, size * (here + 1) // self.count)

    def gather(self, rows: torch.Tensor, size: int) -> torch.Tensor:
        """`[size, …]` on the CPU, from every rank's part of it. Collective."""
        if self.count == 1:
            return rows.cpu()
        longest = -(-size // self.count)
        mine = rows.new_zeros(longest, *rows.shape[1:], device=self.device)
        mine[: len(rows)] = rows
        every = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(every, mine, group=self.group)
        parts = [self.slice_of(size, index) for index in range(self.count)]
        return torch.cat([rank[: p.stop - p.start] for rank, p in zip(every, parts, strict=True)]).cpu()

    def gather_texts(self, mine: list[str]) -> list[str]:
        """Every rank's texts, in the order of ranks. Collective."""
        if self.count == 1:
            return mine
        octets = torch.frombuffer(bytearray(json.dumps(mine).encode()), dtype=torch.uint8).to(self.device)
        lengths = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.count)]
        dist.all_gather(lengths, torch.tensor([len(octets)], device=self.device), group=self.group)
        sizes = [int(length) for length in lengths]
        padded = octets.new_zeros(max(sizes))
        padded[: len(octets)] = octets
        every = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(every, padded, group=self.group)
        parts = [bytes(e[:size].cpu().numpy()) for e, size in zip(every, sizes, strict=True)]
        return [text for part in parts for text in json.loads(part)]

    def share(self, function: Callable[[float], float], arguments: Sequence[float]) -> list[float]:
        """[function(a) for a in arguments], each computed by one rank, in turn. Collective.

        Raises on every rank alike what the function raises on one, as long as it would raise it on all.
        """
        results = torch.zeros(len(arguments), dtype=torch.float64)
        for place in range(self.index, len(arguments), self.count):
            results[place] = function(arguments[place])
        if self.count > 1:
            results = results.to(self.device)
            dist.all_reduce(results, group=self.group)
        return results.tolist()


@dataclass(frozen=True)
class Encoded:
    """What is known of a set of pairs."""

    images: torch.Tensor
    """[n, d] fp32: features of the pictures."""
    captions: list[str]
    """[n]"""
    texts: list[str]
    """[t] The distinct captions, in order of appearance."""
    text_features: torch.Tensor
    """[t, d] fp32"""
    text_of: torch.Tensor
    """[n] int64: index of each picture's caption among `texts`."""
    picture_of: torch.Tensor
    """[n] int64: equal for pictures that are equal in every pixel; counts the distinct ones in order of appearance."""
    positions: NDArray[np.int64]
    """[n] Where each pair stands in its set."""


def chosen(length: int, limit: int) -> NDArray[np.int64]:
    """Positions of at most `limit` samples (0: all), spread evenly: sets are often sorted by class."""
    count = min(length, limit) if limit else length
    return np.arange(count, dtype=np.int64) * length // max(count, 1)


def read_captions(pairs: Pairs, positions: NDArray[np.int64], team: Team) -> list[str]:
    """Captions at `positions`, each read by one rank and told to all. Collective."""
    mine = [
        text for start, size in _runs(positions[team.slice_of(len(positions))]) for text in pairs.captions(start, size)
    ]
    return team.gather_texts(mine)


def check_pictures(pairs: Pairs, positions: NDArray[np.int64], team: Team) -> None:
    """Decode this rank's part of the pictures at `positions` once: one that cannot be is told before a run has trained
    for hours, and not when it is first looked at. Raises what `pairs` raises.
    """
    for start, size in _runs(positions[team.slice_of(len(positions))]):
        for low in range(start, start + size, _DECODED_AT_ONCE):
            pairs.batch(low, min(_DECODED_AT_ONCE, start + size - low))


def encode_pictures(
    pairs: Pairs,
    positions: NDArray[np.int64],
    embed: Embed,
    team: Team,
    micro_batch_size: int,
    alive: Callable[[], None] = lambda: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(features `[n, d]`, fingerprints of the pixels `[n]` int64) of the pictures at `positions`. Collective."""
    marks: list[int] = []

    def read(rows: slice) -> torch.Tensor:
        images = np.concatenate([pairs.batch(start, size).images for start, size in _runs(positions[rows])])
        return torch.from_numpy(images)

    def run(images: torch.Tensor, real: int) -> torch.Tensor:
        marks.extend(_fingerprint(image) for image in images[:real].numpy())
        features, _ = embed(images.to(team.device), None)
        assert features is not None
        alive()
        return features

    features = _in_micro_batches(len(positions), read, run, team, micro_batch_size, "pictures")
    return features, team.gather(torch.tensor(marks, dtype=torch.int64), len(positions))


def encode_texts(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    context_length: int,
    embed: Embed,
    team: Team,
    micro_batch_size: int,
    alive: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Features `[t, d]` of texts, which every rank must pass alike. Collective."""

    def read(rows: slice) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(tokenizer.encode(list(texts[rows]), context_length)))

    def run(tokens: torch.Tensor, _real: int) -> torch.Tensor:
        _, features = embed(None, tokens.to(team.device))
        assert features is not None
        alive()
        return features

    return _in_micro_batches(len(texts), read, run, team, micro_batch_size, "texts")


def encode_pairs(
    pairs: Pairs,
    tokenizer: Tokenizer,
    context_length: int,
    embed: Embed,
    *,
    team: Team,
    micro_batch_size: int,
    limit: int = 0,
    captions: list[str] | None = None,
    with_texts: bool = True,
    alive: Callable[[], None] = lambda: None,
) -> Encoded:
    """Features of up to `limit` pairs (0: all), on every rank. Distinct captions are encoded once; `with_texts` False:
    not at all, which leaves `text_features` empty. `captions`: those of the pairs, where they were read before.
    Collective; `alive` is called now and then.

    Raises Diverged for features that are not finite.
    """
    positions = chosen(len(pairs), limit)
    if captions is None:
        captions = read_captions(pairs, positions, team)
    images, marks = encode_pictures(pairs, positions, embed, team, micro_batch_size, alive)
    first, text_of = distinct(captions)
    texts = [captions[place] for place in first]
    features = images.new_zeros(0, images.shape[1])
    if with_texts:
        features = encode_texts(texts, tokenizer, context_length, embed, team, micro_batch_size, alive)
    return Encoded(images, captions, texts, features, text_of, distinct(marks.tolist())[1], positions)


def _in_micro_batches(
    size: int,
    read: Callable[[slice], torch.Tensor],
    run: Callable[[torch.Tensor, int], torch.Tensor],
    team: Team,
    micro_batch_size: int,
    what: str,
) -> torch.Tensor:
    """`run` over this rank's part in micro-batches, the same number of them on every rank, as models want whose ranks
    talk to each other; rows that only fill one up repeat the last. Then every rank's features, in order.
    """
    if size < 1:
        raise ValueError(f"no {what} to encode")
    mine = team.slice_of(size)
    longest = math.ceil(size / team.count)
    rounds = math.ceil(longest / micro_batch_size)
    features, rows = [], None
    for number in range(rounds):
        low = min(mine.start + number * micro_batch_size, mine.stop)
        high = min(low + micro_batch_size, mine.stop)
        if high > low:
            rows = read(slice(low, high))
        elif rows is None:  # a rank without any row of its own
            rows = read(slice(0, 1))
        filled = torch.cat([rows, rows[-1:].expand(max(micro_batch_size - len(rows), 0), *rows.shape[1:])])
        features.append(run(filled, high - low)[: high - low].float())
    every = team.gather(torch.cat(features), size)
    if not bool(torch.isfinite(every).all()):
        raise Diverged(
            f"the features of held-out {what} are not finite numbers: the weights have diverged; go back to an earlier "
            "checkpoint, with a lower optimizer.lr"
        )
    return every


def _runs(positions: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ascending positions as (start, size) of neighbours."""
    if not len(positions):
        return []
    edges = np.flatnonzero(np.diff(positions) != 1) + 1
    starts = [0, *edges.tolist()]
    ends = [*edges.tolist(), len(positions)]
    return [(int(positions[a]), b - a) for a, b in zip(starts, ends, strict=True)]


def _fingerprint(image: NDArray[np.uint8]) -> int:
    digest = hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
