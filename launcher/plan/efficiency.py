"""How much of an accelerator's peak products, attention and memory-bound kernels reach, and how that is known.

A product of [m, k] by [k, n] takes

    max(2 (m n + fill) (k + depth) / (slope x peak), 2 m k n / (ceiling x peak), bytes / (memory x bandwidth)) + start

so that large products reach `ceiling`, and small ones pay for units that stay idle and for filling the pipelines.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from launcher.errors import UserError
from launcher.plan.hardware import Accelerator


@dataclass(frozen=True)
class Efficiency:
    """Fractions of the data sheet's figures, and what small kernels cost."""

    ceiling: float
    """Of peak: products that are long in every direction."""
    slope: float
    """Of peak: what products between small and large tend to."""
    fill: float
    """Elements of the result that a product costs beyond its own."""
    depth: float
    """Length of k that a product costs beyond its own."""
    start: float
    """Seconds that any kernel takes at least."""
    memory: float
    """Of memory bandwidth: kernels that only read and write."""
    attention: float
    """Of peak: a flash kernel; backward has 2.5 times forward's products."""
    link: float
    """Of the links within a node: collectives of large messages."""
    network: float
    """Of the network: the same between nodes."""
    latency: float
    """Seconds that a collective takes at least."""
    source: str
    sustained: float = 1.0
    """Of all these rates, what a whole step keeps up: clocks fall under load, kernels wait for one another."""

    def product_seconds(self, m: float, n: float, k: float, peak: float, bandwidth: float, width: int = 2) -> float:
        """Seconds of one product of elements of `width` bytes."""
        if not (m and n and k):
            return 0.0
        arithmetic = 2.0 * max((m * n + self.fill) * (k + self.depth) / self.slope, m * n * k / self.ceiling) / peak
        moved = width * (m * k + k * n + m * n) / (self.memory * bandwidth)
        return max(arithmetic, moved) + self.start


# Fitted to 52 products of 256 to 4096 in bf16 on an H100 that OpenXLA ships for its own cost model
# (xla/service/gpu/model/matmul_interpolator_data.h, sm_90), 4 % root mean square; the points are in
# tests/launcher/test_plan_efficiency.py. Ceilings are the largest rates that any shape reached, the "Maximum Achievable
# Matmul FLOPS" of Bekman's "Machine Learning Engineering" (compute/accelerator): 794.5 of 989 TFLOP/s on H100 and H200,
# 271.2 of 312 on A100, 1745 of 2250 on B200. `sustained` is what makes the mean error nought over the runs that
# launcher/plan/published_runs.py marks (10 on A100, 4 on H100), the only figure chosen by fitting to whole steps.
_HOPPER = Efficiency(
    ceiling=0.803,
    slope=0.977,
    fill=585e3,
    depth=230.0,
    start=5.0e-6,
    memory=0.90,  # a copy on an H100 moves 3.0 of 3.35 TB/s, on an H200 4.3 of 4.8: measured with torch 2.11
    attention=0.35,  # FlashAttention-2 on an H100: Shah et al. 2024, abstract
    link=0.80,  # rings of large messages: 366 of 450 GB/s on an H200, 235 of 300 on an A100 (Bekman, network)
    network=0.85,  # 84.8 of 100 GB/s over all sizes, 96 at best (NVIDIA/nccl-tests issue 119); 46-48 of 50 (issue 290)
    latency=20e-6,  # small messages between two nodes: NVIDIA/nccl-tests issue 150
    sustained=0.68,
    source=(
        "H100: 52 products measured for OpenXLA's cost model (matmul_interpolator_data.h, sm_90), their ceiling "
        "794.5 of 989 TFLOP/s (Bekman, Machine Learning Engineering)"
    ),
)
# The same shape where no measured points are at hand: units that stay idle go with their number (108, 148 and 80
# multiprocessors for 132), and the depth with operations a byte (153, 281 and 139 for 295).
_CURVES: dict[str, Efficiency] = {
    "hopper": _HOPPER,
    "ampere": replace(
        _HOPPER,
        ceiling=0.869,
        fill=585e3 * 108 / 132,
        depth=230.0 * 153 / 295,
        sustained=0.87,
        attention=0.50,  # FlashAttention-2 on an A100: 50 to 73 %, Dao 2023, abstract; causal and 2,048 long: the least
        source="A100: ceiling 271.2 of 312 TFLOP/s (Bekman); below it the H100's curve, scaled",
    ),
    "blackwell": replace(
        _HOPPER,
        ceiling=0.776,
        fill=585e3 * 148 / 132,
        depth=230.0 * 281 / 295,
        source="B200: ceiling 1745 of 2250 TFLOP/s (Bekman); below it the H100's curve, scaled, and its attention",
    ),
    "volta": replace(
        _HOPPER,
        ceiling=0.80,
        fill=585e3 * 80 / 132,
        depth=230.0 * 139 / 295,
        sustained=0.87,
        source="V100: nothing measured; the H100's curve, scaled",
    ),
}


_COSTS = ("fill", "depth", "start", "latency")
"""Of an efficiency's figures, those that may be nothing at all; the others divide."""


def default_efficiency(accelerator: Accelerator) -> Efficiency:
    """The curve that is nearest to an accelerator, with its provenance."""
    return _CURVES[accelerator.generation]


def read_efficiency(path: Path, accelerator: Accelerator) -> Efficiency:
    """The curve in a file that `python -m tests.benchmarks.efficiency` wrote; what it lacks is the default's.

    Raises UserError.
    """
    try:
        document = json.loads(path.read_text())
        found = dict(document["efficiency"])
        source = f"{path}: {document['device']}, {document['measured']}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--efficiency {path} cannot be read ({error}); write it with python -m tests.benchmarks.efficiency"
        ) from error
    known = {field.name for field in fields(Efficiency)} - {"source"}
    for name, value in found.items():
        least = 0.0 if name in _COSTS else 1e-3
        if name not in known or not isinstance(value, int | float) or not least <= value < float("inf"):
            raise UserError(f"--efficiency {path}: {name} is {value!r}; it has {', '.join(sorted(known))}, from 0 on")
    return replace(
        default_efficiency(accelerator), **{name: float(value) for name, value in found.items()}, source=source
    )


def to_document(efficiency: Efficiency) -> dict[str, float]:
    """What such a file has under `efficiency`."""
    return {name: value for name, value in asdict(efficiency).items() if name != "source"}
