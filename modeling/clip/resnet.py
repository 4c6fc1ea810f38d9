"""CLIP's ResNet-50 (Radford et al. 2021, section 2.4), data-parallel only.

It differs from He et al. 2016 in a stem of three convolutions, average pooling before each strided convolution
(Zhang 2019) and attention instead of average pooling at the end.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from modeling import groups
from modeling.clip.blocks import empty
from modeling.clip.config import RESNET50_BLOCKS, CLIPConfig
from modeling.execution import Execution

MOMENTUM = 0.1
"""Of the running statistics, as torch's default."""


class ResNet(torch.nn.Module):
    """Normalised pictures `[b, 3, H, W]` → `[b, embed_dim]`."""

    def __init__(self, clip: CLIPConfig, execution: Execution) -> None:
        super().__init__()
        width = clip.vision_width
        self.conv1 = _convolution(execution, 3, width // 2, 3, stride=2)
        self.norm1 = BatchNorm(clip, execution, width // 2)
        self.conv2 = _convolution(execution, width // 2, width // 2, 3)
        self.norm2 = BatchNorm(clip, execution, width // 2)
        self.conv3 = _convolution(execution, width // 2, width, 3)
        self.norm3 = BatchNorm(clip, execution, width)
        channels = width
        self.stages = torch.nn.ModuleList()
        for stage, count in enumerate(RESNET50_BLOCKS):
            inner = width * 2**stage
            blocks = torch.nn.ModuleList()
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(Bottleneck(clip, execution, channels, inner, stride))
                channels = 4 * inner
            self.stages.append(blocks)
        self.pool = AttentionPool(clip, execution, channels)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2), (self.conv3, self.norm3)):
            x = F.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        for blocks in self.stages:
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
        pooled: Tensor = self.pool(x)
        return pooled


class Bottleneck(torch.nn.Module):
    """1 x 1 down, 3 x 3, average pooling by `stride`, 1 x 1 up to four times the inner channels, and the shortcut."""

    def __init__(self, clip: CLIPConfig, execution: Execution, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = _convolution(execution, channels, inner, 1)
        self.norm1 = BatchNorm(clip, execution, inner)
        self.conv2 = _convolution(execution, inner, inner, 3)
        self.norm2 = BatchNorm(clip, execution, inner)
        self.conv3 = _convolution(execution, inner, 4 * inner, 1)
        self.norm3 = BatchNorm(clip, execution, 4 * inner)
        changes = stride > 1 or channels != 4 * inner
        self.shortcut = _convolution(execution, channels, 4 * inner, 1) if changes else None
        self.shortcut_norm = BatchNorm(clip, execution, 4 * inner) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(self._pooled(y)))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(self._pooled(x)))
        return F.relu(y + x)

    def _pooled(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class AttentionPool(torch.nn.Module):
    """One layer of attention whose query is the mean of all places: `[b, c, h, w]` → `[b, embed_dim]`."""

    def __init__(self, clip: CLIPConfig, execution: Execution, channels: int) -> None:
        super().__init__()
        self.heads = clip.vision_heads
        self.position_embedding = empty(execution, clip.patches + 1, channels)
        where: dict[str, Any] = {"device": torch.cuda.current_device(), "dtype": execution.dtype}
        self.query = torch.nn.Linear(channels, channels, **where)
        self.key = torch.nn.Linear(channels, channels, **where)
        self.value = torch.nn.Linear(channels, channels, **where)
        self.projection = torch.nn.Linear(channels, clip.embed_dim, **where)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.position_embedding
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.query(x[:, :1]), self.key(x), self.value(x))
        )
        out: Tensor = self.projection(F.scaled_dot_product_attention(q, k, v)[:, :, 0].flatten(1))
        return out


def _convolution(execution: Execution, into: int, out: int, kernel: int, stride: int = 1) -> torch.nn.Conv2d:
    return torch.nn.Conv2d(
        into,
        out,
        kernel,
        stride=stride,
        padding=kernel // 2,
        bias=False,
        device=torch.cuda.current_device(),
        dtype=execution.dtype,
    )


class BatchNorm(torch.nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) of `[b, c, h, w]`, with the statistics of all data-parallel ranks.

    The running statistics are parameters without gradients, so that checkpoints carry them. They are what normalises
    in evaluation, and always when `freeze_batch_norm` is set. A training pass is collective over the data group.
    """

    def __init__(self, clip: CLIPConfig, execution: Execution, channels: int) -> None:
        super().__init__()
        self.frozen = clip.freeze_batch_norm
        self.weight = empty(execution, channels)
        self.bias = empty(execution, channels)
        self.running_mean = empty(execution, channels).requires_grad_(False)
        self.running_var = empty(execution, channels).requires_grad_(False)
        self.epsilon = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        if self.frozen or not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.epsilon)
        group = groups.data_group()
        with torch.no_grad():
            count, mean, var = _statistics(x, group)
            # Of a batch that is not finite the step is skipped: it must not stay in the running statistics either.
            momentum = MOMENTUM * torch.isfinite(mean.sum() + var.sum()).to(x.dtype)
            unbiased = var * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean.nan_to_num(0.0, 0.0, 0.0), momentum)
            self.running_var.lerp_(unbiased.nan_to_num(0.0, 0.0, 0.0), momentum)
        y: Tensor = _Normalise.apply(x, self.weight, self.bias, count, mean, var, self.epsilon, group)
        return y


_PLACES = (0, 2, 3)


def _statistics(x: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Number of places, and mean and variance `[c]` over the ranks of `group`; in two passes, which lose nothing."""
    count = torch.full((1,), x.numel() // x.shape[1], dtype=x.dtype, device=x.device)
    sums = _summed(torch.cat([x.sum(_PLACES), count]), group)
    count, mean = sums[-1], sums[:-1] / sums[-1]
    var = _summed((x - _by_channel(mean)).square().sum(_PLACES), group) / count
    return count, mean, var


def _summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    if dist.get_world_size(group) > 1:
        dist.all_reduce(x, group=group)
    return x


def _by_channel(x: Tensor) -> Tensor:
    return x[:, None, None]


class _Normalise(torch.autograd.Function):
    """The gradient passes through the statistics, of which every rank's places are a part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, count: Tensor, *others: Any) -> Tensor:
        mean, var, epsilon, group = others
        inverse = torch.rsqrt(var + epsilon)
        ctx.save_for_backward(x, weight, count, mean, inverse)
        ctx.group = group
        return (x - _by_channel(mean)) * _by_channel(inverse * weight) + _by_channel(bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, count, mean, inverse = ctx.saved_tensors
        (grad,) = grads
        normal = (x - _by_channel(mean)) * _by_channel(inverse)
        # Gain and bias: this rank's part, which the engine sums; the input's gradient needs all ranks' now.
        grad_bias, grad_weight = grad.sum(_PLACES), (grad * normal).sum(_PLACES)
        total = _summed(torch.stack([grad_bias, grad_weight]), ctx.group) / count
        grad_x = (grad - _by_channel(total[0]) - normal * _by_channel(total[1])) * _by_channel(inverse * weight)
        return grad_x, grad_weight, grad_bias, None, None, None, None, None
