"""What one rank of test_contrastive_ranks does: its part of every case, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from modeling.contrastive import clip_loss, contrastive, nt_xent_loss, sigmoid_loss
from modeling.contrastive.coupled import Coupled
from modeling.errors import ModelError
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


def share(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """This rank's numbers in every case, its gradient of a shared projection, and what it says to wrong input."""
    world = dist.group.WORLD
    first, second = pairs(13, 12)
    mine = slice(dist.get_rank(), None, dist.get_world_size())  # an uneven deal
    parameters = projection_and_scale()
    loss = projected(parameters, first[mine], second[mine], world)
    loss.backward()
    return {
        "cases": in_every_case(cases),
        "loss": loss.item(),
        "gradients": [parameter.grad.tolist() for parameter in parameters if parameter.grad is not None],
        "sizes": refusal(torch.ones(2, 3 + min(dist.get_rank(), 1))),
        "nothing": refusal(torch.ones(0, 3)),
    }


def projection_and_scale() -> list[torch.Tensor]:
    """Parameters `[12, 12]` and a scalar, equal on all ranks."""
    projection = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return [projection.requires_grad_(), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)]


def projected(
    parameters: list[torch.Tensor], first: torch.Tensor, second: torch.Tensor, group: dist.ProcessGroup | None
) -> torch.Tensor:
    """CLIP's loss of both features through one projection."""
    a, b = (F.normalize(x.double() @ parameters[0]) for x in (first, second))
    return contrastive(clip_loss, a, b, parameters[1], group=group, tile=4)


def refusal(features: torch.Tensor) -> str:
    try:
        clip_loss(features, features, 1.0, group=dist.group.WORLD)
    except ModelError as error:
        return str(error)
    return ""


def in_every_case(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
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
