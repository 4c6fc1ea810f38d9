"""What one rank of test_contrastive_ranks does: its part of every case, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from modeling.contrastive import clip_loss, nt_xent_loss, sigmoid_loss
from modeling.contrastive.coupled import Coupled
from tests.modeling.contrastive_reference import BIAS, pairs

LOSSES: dict[str, Callable[..., Coupled]] = {"clip": clip_loss, "nt_xent": nt_xent_loss, "sigmoid": sigmoid_loss}


@dataclass(frozen=True)
class Case:
    """One loss over pairs that the ranks share unevenly."""

    loss: str
    counts: list[int]
    log_scale: float
    spread: float
    tile: int | None
    dtype: str

    @property
    def pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of all ranks, `[N, 12]` fp32."""
        return pairs(sum(self.counts), 12, spread=self.spread)


def compute(case: Case, first: torch.Tensor, second: torch.Tensor, group: dist.ProcessGroup | None) -> Coupled:
    x, y = (t.to(getattr(torch, case.dtype)) for t in (first, second))
    more = (BIAS,) if case.loss == "sigmoid" else ()
    return LOSSES[case.loss](x, y, case.log_scale, *more, group=group, tile=case.tile)


def values(result: Coupled) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(result).items() if value is not None}


def share(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """This rank's numbers in every case."""
    rank, answers = dist.get_rank(), []
    for arguments in cases:
        case = Case(**arguments)
        low = sum(case.counts[:rank])
        mine = slice(low, low + case.counts[rank])
        first, second = case.pairs
        result = values(compute(case, first[mine], second[mine], dist.group.WORLD))
        answers.append({name: value.tolist() for name, value in result.items()})
    return answers


def as_arguments(cases: list[Case]) -> list[dict[str, Any]]:
    return [asdict(case) for case in cases]
