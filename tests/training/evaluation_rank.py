"""A toy model, toy sets of pairs, and one of several ranks that evaluate it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from training.evaluation.config import EvaluationConfig, ProbeTask, ZeroShotTask
from training.evaluation.encode import Team, encode_pairs
from training.evaluation.suite import Findings, Suite

COLOURS = {"red": (220, 30, 30), "grün": (30, 200, 40), "blue": (30, 40, 220), "grey": (120, 120, 120)}
CONTEXT = 5
MICRO = 4


@dataclass
class Arrays:
    images: NDArray[np.uint8]
    tokens: NDArray[np.int64]


@dataclass
class Painted:
    """Plain pictures of a colour, a little noisy, with the colour as caption."""

    size: int
    seed: int = 0
    template: str = "{}"
    colours: Sequence[str] = tuple(COLOURS)
    reads: list[tuple[int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return self.size

    def batch(self, start: int, size: int) -> Arrays:
        assert start >= 0 and size > 0 and start + size <= self.size
        self.reads.append((start, size))
        images = np.stack([self._paint(place) for place in range(start, start + size)])
        return Arrays(images, Words().encode(self.captions(start, size), CONTEXT))

    def captions(self, start: int, size: int) -> list[str]:
        names = [self.colours[place % len(self.colours)] for place in range(start, start + size)]
        return [self.template.replace("{}", name) for name in names]

    def _paint(self, place: int) -> NDArray[np.uint8]:
        rng = np.random.default_rng((self.seed, place))
        colour = np.array(COLOURS[self.colours[place % len(self.colours)]])
        return np.clip(colour[:, None, None] + rng.integers(-25, 26, (3, 6, 8)), 0, 255).astype(np.uint8)


class Words:
    """A token for each word, by a hash."""

    def encode(self, captions: Sequence[str], context_length: int) -> NDArray[np.int64]:
        tokens = np.zeros((len(captions), context_length), dtype=np.int64)
        for row, caption in zip(tokens, captions, strict=True):
            words = caption.rstrip(".").split()[:context_length]
            row[: len(words)] = [1 + hashlib.blake2b(word.encode()).digest()[0] for word in words]
        return tokens


class Toy:
    """Knows what colours look like: a picture's features are its mean colour; a text's those of the colour it names."""

    def __init__(self, *, random: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.table = torch.zeros(257, 3) if not random else torch.randn(257, 3, generator=generator)
        self.calls: list[tuple[str, int]] = []
        for name, colour in COLOURS.items() if not random else ():
            self.table[Words().encode([name], 1)[0, 0]] = torch.tensor(colour) / 255 - 0.4

    def __call__(
        self, images: torch.Tensor | None, tokens: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if images is not None:
            assert images.dtype == torch.uint8
            self.calls.append(("images", len(images)))
            return torch.nn.functional.normalize(images.float().mean((2, 3)) / 255 - 0.4, dim=1), None
        assert tokens is not None and tokens.dtype == torch.int64
        self.calls.append(("texts", len(tokens)))
        return None, torch.nn.functional.normalize(self.table[tokens].sum(1) + 1e-3, dim=1)


SETS = {
    "pairs": lambda: Painted(13),
    "tests": lambda: Painted(22, seed=1, template="a photo of a {}."),
    "train": lambda: Painted(41, seed=2, template="a photo of a {}."),
}


def everything(classes: list[str] | None = None, **changes: object) -> EvaluationConfig:
    return EvaluationConfig(
        zero_shot=[ZeroShotTask("tests", classes or list(COLOURS), name="colours")],
        probe=[ProbeTask("train", "tests")],
        **changes,  # type: ignore[arg-type]
    )


def suite(config: EvaluationConfig, team: Team) -> Suite:
    return Suite(
        config, {"held-out": "pairs"}, lambda name: SETS[name](), Words(), CONTEXT, team=team, micro_batch_size=MICRO
    )


def evaluate(where: str) -> None:
    """What this rank finds, in the folder `where`."""
    rank, count, folder = dist.get_rank(), dist.get_world_size(), Path(where)
    team, found = Team(rank, count, dist.group.WORLD), {}
    for size in (1, 2, 9):
        toy, pairs, beats = Toy(), Painted(size), []
        encoded = encode_pairs(
            pairs, Words(), CONTEXT, toy, team=team, micro_batch_size=MICRO, alive=lambda beats=beats: beats.append(1)
        )
        kept = {name: value for name, value in vars(encoded).items() if name != "positions"}
        found[size] = kept | {"calls": toy.calls, "reads": pairs.reads, "beats": len(beats)}
    torch.save(found, folder / f"encoded-{rank}.pt")
    findings: Findings = suite(everything(), team).run(Toy(), draw=rank == 0)
    said = {"figures": findings.figures, "pictures": [[tag, int(p.astype(int).sum())] for tag, p in findings.pictures]}
    (folder / f"findings-{rank}.json").write_text(json.dumps(said))
