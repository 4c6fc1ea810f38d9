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
from launcher.plan.hardware import Accelerator, of_device


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
    masked_attention: float
    """Of peak: the memory-efficient kernel that torch takes where it is handed a mask, or fp32."""
    link: float
    """Of the links within a node: collectives of large messages."""
    network: float
    """Of the network: the same between nodes."""
    latency: float
    """Seconds that a collective takes at least."""
    source: str
    sustained: float = 1.0
    """Of all these rates, what a whole step keeps up: clocks fall under load, kernels wait for one another."""
    sustained_from: str = ""
    """What `sustained` was chosen on, for people."""
    sustained_gpu: str = ""
    """The accelerator of those runs."""

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
# launcher/plan/published_runs.py marks (10 on A100, 4 on H100): the only figure here that was chosen by fitting to
# whole steps. Some systems' habits in published_runs.py were, too, by hand.
_HOPPER = Efficiency(
    ceiling=0.803,
    slope=0.977,
    fill=585e3,
    depth=230.0,
    start=5.0e-6,
    memory=0.90,  # a copy on an H100 moves 3.0 of 3.35 TB/s, on an H200 4.3 of 4.8: measured with torch 2.11
    attention=0.35,  # FlashAttention-2 on an H100: Shah et al. 2024, abstract
    masked_attention=0.175,  # half of it, as on an A100: an estimate
    link=0.80,  # rings of large messages: 366 of 450 GB/s on an H200, 235 of 300 on an A100 (Bekman, network)
    network=0.85,  # 84.8 of 100 GB/s over all sizes, 96 at best (NVIDIA/nccl-tests issue 119); 46-48 of 50 (issue 290)
    latency=20e-6,  # small messages between two nodes: NVIDIA/nccl-tests issue 150
    sustained=0.68,
    sustained_from="chosen on 4 published H100 runs",
    sustained_gpu="h100",
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
        sustained_from="chosen on 10 published A100 runs",
        sustained_gpu="a100-80gb",
        attention=0.50,  # FlashAttention-2 on an A100: 50 to 73 %, Dao 2023, abstract; causal and 2,048 long: the least
        # The same abstract says 25 to 40 % of the first FlashAttention, and xformers' kernel, which is torch's, is on a
        # par with that (facebookresearch/xformers pull request 479): the least.
        masked_attention=0.25,
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
        sustained_from="chosen on 10 published A100 runs",
        sustained_gpu="a100-80gb",
        source="V100: nothing measured; the H100's curve, scaled",
    ),
}


_COSTS = ("fill", "depth", "start", "latency")
"""Of an efficiency's figures, those that may be nothing at all; the others divide."""
_TEXTS = ("source", "sustained_from", "sustained_gpu")
_MOST_SLOPE = 2.0
"""Of the peak: a curve's slope is where it starts to bend towards its ceiling, and may lie above the peak."""


def default_efficiency(accelerator: Accelerator) -> Efficiency:
    """The curve that is nearest to an accelerator, with its provenance."""
    return _CURVES[accelerator.generation]


def read_efficiency(path: Path, accelerator: Accelerator) -> Efficiency:
    """The curve in a file that `python -m tests.benchmarks.efficiency` wrote; what it lacks is the default's.

    A file of another accelerator that is known is refused; one of a device that is not known is taken, and says so.
    Raises UserError.
    """
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or "it is not JSON"
        raise UserError(f"--efficiency {path} cannot be read: {said}; {_WRITE_IT}") from error
    keys = document if isinstance(document, dict) else {}
    lacks = [f"'{key}'" for key in ("device", "measured", "efficiency") if key not in keys]
    if lacks or not isinstance(document["efficiency"], dict):
        raise UserError(f"--efficiency {path} lacks {' and '.join(lacks) or 'figures by name'}; {_WRITE_IT}")
    device, found = str(document["device"]), document["efficiency"]
    measured = of_device(device)
    if measured is not None and measured != of_device(accelerator.device):
        raise UserError(f"--efficiency {path} was measured on {device}: plan with --gpu {measured.name}, or without it")
    for name, value in found.items():
        _check(path, name, value)
    default = default_efficiency(accelerator)
    return replace(
        default,
        **{name: float(value) for name, value in found.items()},
        sustained_from=f"as {path} says" if "sustained" in found else default.sustained_from,
        sustained_gpu=accelerator.name if "sustained" in found else default.sustained_gpu,
        source=f"{path}: {device}, {document['measured']}" + ("" if measured else f"; taken for {accelerator.name}"),
    )


_WRITE_IT = "write it with python -m tests.benchmarks.efficiency"


def _check(path: Path, name: str, value: object) -> None:
    """Raises UserError unless a file may have this figure."""
    known = {field.name for field in fields(Efficiency)} - set(_TEXTS)
    if name not in known:
        raise UserError(f"--efficiency {path}: {name} is not known; there are {', '.join(sorted(known))}")
    least = 0.0 if name in _COSTS else 1e-6
    most = float("inf") if name in _COSTS else _MOST_SLOPE if name == "slope" else 1.0
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most or value == float("inf"):  # type: ignore[operator]
        what = "0 or more" if name in _COSTS else f"a share above 0 and up to {most:g}, not per cent"
        raise UserError(f"--efficiency {path}: {name} is {value!r}; it must be {what}")


def to_document(efficiency: Efficiency) -> dict[str, float]:
    """What such a file has under `efficiency`."""
    return {name: value for name, value in asdict(efficiency).items() if name not in _TEXTS}
