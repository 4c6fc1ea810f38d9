"""One of two data-parallel ranks of test_clip_resnet."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from modeling.clip.resnet import BatchNorm
from modeling.execution import Execution
from modeling.groups import start_groups, stop_groups
from modeling.layout import Layout
from tests.modeling.clip_worlds import RESNET

CHANNELS = 3


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Activations far from 0 `[5, c, 4, 4]`, and the gradient of the loss with respect to the output."""
    generator = torch.Generator().manual_seed(4)
    shape = (5, CHANNELS, 4, 4)
    return 100.0 + torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def leave(folder: str) -> None:
    """Outputs, gradients and statistics, in `folder`/rank-N.pt."""
    rank = dist.get_rank()
    start_groups(Layout())
    norm = fresh(BatchNorm(RESNET, Execution(), CHANNELS))
    part = slice(0, 2) if rank == 0 else slice(2, 5)  # uneven
    x, grad = (tensor[part] for tensor in inputs())
    x.requires_grad_()
    y = norm(x)
    y.backward(grad)
    assert x.grad is not None
    result = {"y": y.detach(), "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    result |= {"running_mean": norm.running_mean.detach(), "running_var": norm.running_var.detach()}
    torch.save(result, Path(folder) / f"rank-{rank}.pt")
    stop_groups()


def fresh(norm: torch.nn.Module) -> torch.nn.Module:
    """With gains and biases that are not ones and zeros."""
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, CHANNELS + 1))
        norm.bias.copy_(torch.arange(CHANNELS) - 1.0)
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0)
    return norm
