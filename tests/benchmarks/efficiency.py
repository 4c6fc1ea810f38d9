"""How much of its peak a device reaches: the curve that `trestle plan --efficiency FILE` takes in place of the default.

    python -m tests.benchmarks.efficiency --out efficiency.json            # a minute on a GPU
    python -m tests.benchmarks.efficiency --quick --peak-tflops 10         # seconds on a CPU, only to see that it runs

Matrix products of 256 to 8192 in bf16, a copy, and attention forward and backward, causal and with a mask, each by
itself and the device waited for. What a whole step keeps up of these rates (`sustained`), and collectives, are not
measured: they stay the default's, unless a measured step time says better (`--sustained`).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F

from launcher.plan.efficiency import Efficiency, default_efficiency, to_document
from launcher.plan.hardware import accelerator, of_device
from tests.benchmarks.common import print_table
from training.metrics.mfu import peak_flops

Point = tuple[int, int, int, float]
"""m, n, k and seconds."""

SIZES = (256, 512, 1024, 2048, 4096, 8192)
QUICK = (64, 128, 256)
MEASURED = ("ceiling", "slope", "fill", "depth", "start", "memory", "attention", "masked_attention")


def measure(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of one call: the median of a few rounds, each long enough to be timed."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    run()
    wait()
    times = []
    for _ in range(3):
        before = time.perf_counter()
        for _ in range(repeats):
            run()
        wait()
        times.append((time.perf_counter() - before) / repeats)
    return statistics.median(times)


def products(sizes: Sequence[int], device: torch.device, repeats: int) -> list[Point]:
    """Of all m = n and k of `sizes`, and of a few narrow ones, on random numbers: zeros let a chip clock higher."""
    shapes = [(m, m, k) for m in sizes for k in sizes]
    shapes += [(sizes[0], n, k) for n in sizes[1:] for k in sizes[1:]]
    points = []
    for m, n, k in shapes:
        left, right = (torch.randn(shape, device=device, dtype=torch.bfloat16) for shape in ((m, k), (k, n)))
        points.append((m, n, k, measure(lambda a=left, b=right: a @ b, device, repeats)))  # type: ignore[misc]
    return points


def copied(device: torch.device, elements: int, repeats: int) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.randn(elements, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return 4.0 * elements / measure(lambda: target.copy_(source), device, repeats)


def attended(device: torch.device, positions: int, heads: int, repeats: int, *, masked: bool = False) -> float:
    """Operations a second of causal attention with heads of 128, forward and backward: 2 and 5 products, of which the
    causal kernel leaves half out; one that is handed a mask computes all.
    """
    mask = torch.zeros(1, 1, positions, positions, device=device, dtype=torch.bfloat16) if masked else None
    query, key, value = (
        torch.randn(1, heads, positions, 128, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )

    def run() -> None:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=not masked)
        out.sum().backward()

    return (14 if masked else 7) * heads * positions**2 * 128 / measure(run, device, repeats)


def fit(points: Sequence[Point], peak: float, base: Efficiency, bandwidth: float) -> Efficiency:
    """The curve through measured products: its ceiling is the best rate, the rest has the least mean square error of
    the logarithms, found one figure at a time.
    """
    ceiling = max(2.0 * m * n * k / seconds for m, n, k, seconds in points) / peak
    curve = replace(base, ceiling=ceiling, slope=1.2 * ceiling)
    curve = replace(curve, start=0.8 * min(seconds for *_, seconds in points))

    def error(candidate: Efficiency) -> float:
        return sum(
            math.log(candidate.product_seconds(m, n, k, peak, bandwidth) / seconds) ** 2 for m, n, k, seconds in points
        )

    best, widths = error(curve), dict.fromkeys(("slope", "fill", "depth", "start"), 0.3)
    for _ in range(60):
        for name, width in widths.items():
            trials = [replace(curve, **{name: getattr(curve, name) * (1 + sign * width)}) for sign in (1, -1)]
            least = min(trials, key=error)
            if error(least) < best:
                best, curve = error(least), least
            else:
                widths[name] = width * 0.8
    return curve


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure a device's efficiency for trestle plan.")
    parser.add_argument("--out", type=Path, default=Path("efficiency.json"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peak-tflops", type=float, help="of the device, where training.metrics.mfu does not know it")
    parser.add_argument(
        "--memory-gb-per-s", type=float, help="of its data sheet; the nearest known accelerator's if not"
    )
    parser.add_argument("--sustained", type=float, help="measured step over planned, if you have measured one")
    chosen = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu"
    peak = 1e12 * chosen.peak_tflops if chosen.peak_tflops else peak_flops(name)
    if peak is None:
        parser.error(f"the peak of {name} is not known: give --peak-tflops")
    chip = of_device(name)
    base = default_efficiency(chip or accelerator("h100"))
    bandwidth = 1e9 * chosen.memory_gb_per_s if chosen.memory_gb_per_s else chip.memory_bandwidth if chip else None
    repeats = 3 if chosen.quick else 20
    points = products(QUICK if chosen.quick else SIZES, device, repeats)
    moved = copied(device, 2**20 if chosen.quick else 2**28, repeats)
    shape = (64, 2) if chosen.quick else (2048, 64)
    rate, masked = (attended(device, *shape, repeats, masked=flag) for flag in (False, True))
    curve = fit(points, peak, base, bandwidth or moved)
    curve = replace(curve, memory=moved / (bandwidth or moved), attention=rate / peak, masked_attention=masked / peak)
    print_table(
        ["m", "n", "k", "TFLOP/s", "of the curve"],
        [
            [str(m), str(n), str(k), f"{2e-12 * m * n * k / s:.3g}", f"{s / seconds:.2f}"]
            for m, n, k, s in points
            for seconds in [curve.product_seconds(m, n, k, peak, bandwidth or moved)]
        ],
    )
    kept = (*MEASURED, "sustained") if chosen.sustained else MEASURED
    found = to_document(replace(curve, sustained=chosen.sustained or 1.0))
    document = {
        "device": name,
        "measured": f"{datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}",
        "peak_flops": peak,
        "memory_bytes_per_second": moved,
        "efficiency": {key: found[key] for key in kept},
        "products": [{"m": m, "n": n, "k": k, "seconds": seconds} for m, n, k, seconds in points],
    }
    chosen.out.write_text(json.dumps(document, indent=1) + "\n")
    print(f"\n{chosen.out}: " + ", ".join(f"{key} {found[key]:.3g}" for key in kept))


if __name__ == "__main__":
    main()
