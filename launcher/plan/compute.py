"""Seconds that a rank's own units need for one micro-batch, by stage: forward, backward, and what is computed again."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan.efficiency import Efficiency
from launcher.plan.habits import Habits
from launcher.plan.hardware import Accelerator
from modeling.work import Attention, Product, Traffic, Work

_FLASH_BACKWARD = 2.5
"""Five products in a flash kernel's backward for two in its forward (Dao 2023, section 4)."""
_SOFTMAX_PASSES = 6.5
"""Elements of bf16 moved for each score of an attention in parts, forward: written, read and written by the softmax and
by dropout, read; masks are bytes. Backward moves twice as much."""


@dataclass(frozen=True)
class ComputeSeconds:
    """One micro-batch."""

    forward: float
    backward: float
    recompute: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.recompute


@dataclass(frozen=True)
class Device:
    """What runs the work: an accelerator, how well it is used, and in which width."""

    accelerator: Accelerator
    efficiency: Efficiency
    habits: Habits
    width: int
    """Bytes of an element: 2 or 4."""

    @property
    def peak(self) -> float:
        return self.accelerator.peak_flops if self.width == 2 else self.accelerator.fp32_flops

    def move(self, bytes_: float) -> float:
        """Seconds to move bytes over memory."""
        return bytes_ / (self.efficiency.memory * self.accelerator.memory_bandwidth)

    def product(self, m: float, n: float, k: float, count: float = 1.0) -> float:
        bandwidth = self.accelerator.memory_bandwidth
        return count * self.efficiency.product_seconds(m, n, k, self.peak, bandwidth, self.width)


def compute_seconds(work: Work, parameters: float, device: Device) -> ComputeSeconds:
    """Of one micro-batch on a rank that has so many trained parameters, whose gradients it adds to their sums."""
    forward = backward = again = 0.0
    for product in work.products:
        first, back = _product(product, device)
        forward, backward = forward + first, backward + back
        again += first if product.again else 0.0
    for attention in work.attention:
        first, back = _attention(attention, device)
        forward, backward = forward + first, backward + (back if attention.gradients else 0.0)
        again += first if attention.again else 0.0
    for traffic in work.traffic:
        first, back = _traffic(traffic, device)
        forward, backward = forward + first, backward + back
        again += first if traffic.again else 0.0
    backward += device.move(parameters * device.habits.gradient_bytes)
    kept_up = device.efficiency.sustained
    return ComputeSeconds(forward / kept_up, backward / kept_up, again / kept_up)


def _product(product: Product, device: Device) -> tuple[float, float]:
    m, n, k, count = product.m, product.n, product.k, product.count
    back = 0.0
    if product.gradients:  # of the weight: [k, m] x [m, n]
        back += device.product(k, n, m, count)
    if product.gradients > 1:  # of the input: [m, n] x [n, k]
        back += device.product(m, k, n, count)
    return device.product(m, n, k, count), back


def _attention(attention: Attention, device: Device) -> tuple[float, float]:
    # A flash kernel takes no mask and no fp32; torch has another one for those, which takes no grouped queries
    # (`enable_gqa` of torch's scaled_dot_product_attention).
    masked = attention.masked or device.width == 4
    if device.habits.flash_attention and not (masked and attention.grouped):
        rate = (device.efficiency.masked_attention if masked else device.efficiency.attention) * device.peak
        forward = 4.0 * attention.size * attention.heads * attention.tiles() * attention.count / rate
        start = attention.count * device.efficiency.start
        return forward + start, _FLASH_BACKWARD * forward + start
    heads, size = attention.heads, attention.size
    # Batches of small products fill the device together: as one whose result is as large.
    rows = heads * attention.queries
    products = device.product(rows, attention.keys, size) + device.product(rows, size, attention.keys)
    passes = device.move(_SOFTMAX_PASSES * device.width * heads * attention.queries * attention.keys)
    one = products + passes
    return attention.count * one, 2.0 * attention.count * one


def _traffic(traffic: Traffic, device: Device) -> tuple[float, float]:
    passes = device.habits.fused_passes * device.width
    start = traffic.kernels * device.habits.fused_kernels * device.efficiency.start
    if device.habits.compiled and traffic.compiled is not None:
        return max(device.move(device.width * traffic.compiled), start), 0.0
    # A kernel takes as long as it moves bytes, and no less than its start.
    return max(device.move(passes * traffic.forward), start), (
        max(device.move(passes * traffic.backward), 2.0 * start) if traffic.backward else 0.0
    )
