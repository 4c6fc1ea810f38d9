"""The tiled contrastive losses against dense ones: `python -m tests.benchmarks.contrastive`.

Memory: what a loss and its gradients take beyond the features, outputs included, each in a process of its own (the
kernel's high-water mark). Time: forward and backward in rounds that alternate. Accuracy: gradients in fp32 at scale 100
against fp64, relative to the largest. Dense is torch's cross-entropy of the whole matrix, both ways, under autograd.
open_clip's own loss takes part where its `loss.py` is: installed, or named by `--open-clip`, an unpacked wheel
(`pip download --no-deps open_clip_torch`; the file itself needs torch alone).
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from modeling.contrastive import clip_loss, nt_xent_loss, sigmoid_loss
from tests.benchmarks.common import machine, middle_and_spread, print_table

Side = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]
SCALE = 100.0


def features(pairs: int, size: int, spread: float = 1.5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalised `[pairs, size]` twice, partly aligned, and ln s."""
    generator = torch.Generator().manual_seed(0)
    first = F.normalize(torch.randn(pairs, size, generator=generator))
    noise = torch.randn(pairs, size, generator=generator).mul_(spread / size**0.5)
    return first, F.normalize(noise.add_(first)), torch.tensor(math.log(SCALE))


def tiled(loss: str, tile: int | None) -> Side:
    def run(first: torch.Tensor, second: torch.Tensor, log_scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if loss == "sigmoid":
            found = sigmoid_loss(first, second, log_scale, -10.0, tile=tile)
        else:
            found = {"clip": clip_loss, "nt_xent": nt_xent_loss}[loss](first, second, log_scale, tile=tile)
        return found.loss, found.first_gradient, found.second_gradient, found.log_scale_gradient

    return run


def by_autograd(loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]) -> Side:
    def run(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        value = loss(*leaves)
        return value.detach(), *torch.autograd.grad(value, leaves)

    return run


def dense(first: torch.Tensor, second: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    similarities = log_scale.exp() * first @ second.t()
    labels = torch.arange(len(first), device=first.device)
    return 0.5 * (F.cross_entropy(similarities, labels) + F.cross_entropy(similarities.t(), labels))


def without_diagonal(first: torch.Tensor, second: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """The form without cancellation, dense: what accuracy is measured against, in fp64."""
    similarities = log_scale.exp() * first @ second.t()
    aligned, own = similarities.diagonal(), torch.eye(len(first), dtype=torch.bool)
    sums = ((s - aligned[:, None]).masked_fill(own, -torch.inf).logsumexp(1) for s in (similarities, similarities.t()))
    return 0.5 * sum(F.softplus(e, threshold=40.0).mean() for e in sums)  # type: ignore[return-value]


def open_clip_loss(folder: Path | None) -> Any | None:
    """open_clip's loss for one process, from `loss.py` alone: the package itself wants torchvision."""
    if folder is None:
        found = importlib.util.find_spec("open_clip")
        folder = Path(found.origin).parent if found is not None and found.origin else None
    files = [] if folder is None else [folder / "loss.py", folder / "open_clip" / "loss.py"]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        return None
    spec = importlib.util.spec_from_file_location("open_clip_loss", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loss = module.ClipLoss()
    return lambda first, second, log_scale: loss(first, second, log_scale.exp())


def sides(options: argparse.Namespace) -> dict[str, Side]:
    found = {"Trestle": tiled("clip", options.tile), "dense torch": by_autograd(dense)}
    peer = open_clip_loss(options.open_clip)
    if peer is not None:
        found["open_clip"] = by_autograd(peer)
    return found


def high_water(reset: bool = False) -> dict[str, int]:
    """This process's memory in KiB, now (VmRSS) and at most (VmHWM) since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {line[0].rstrip(":"): int(line[1]) for line in lines if line[0] in ("VmRSS:", "VmHWM:")}


def print_peak(side: Side, pairs: int, size: int) -> None:
    """MiB beyond the features, everything that is returned included."""
    inputs = features(pairs, size)
    side(*features(64, size))  # threads and libraries have what they keep
    before = high_water(reset=True)["VmRSS"]
    kept = side(*inputs)
    assert kept[0].isfinite()
    print(f"{(high_water()['VmHWM'] - before) / 1024:.1f}")


def peak(options: argparse.Namespace, what: str, pairs: int, tile: int | None = None) -> float:
    command = [sys.executable, "-m", "tests.benchmarks.contrastive", "--peak-of", what, "--pairs", str(pairs)]
    command += ["--features", str(options.features)]
    command += ["--tile", str(tile)] if tile else []
    command += ["--open-clip", str(options.open_clip)] if options.open_clip else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {what} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def measure_memory(options: argparse.Namespace) -> None:
    rows = []
    plans = [("clip", n, t) for n in (options.most // 2, options.most) for t in (options.least_tile, None)]
    plans += [(loss, options.most, None) for loss in ("sigmoid", "nt_xent")]
    plans += [(name, options.pairs, None) for name in sides(options) if name != "Trestle"]
    for what, pairs, tile in plans:
        taken = peak(options, what, pairs, tile)
        gradients = 2 * pairs * options.features * 4 / 2**20
        rows.append([what, f"{pairs:,}", str(tile or "default"), f"{taken:.0f} MiB", f"{gradients:.0f} MiB"])
    print_table(["memory beyond the features", "pairs", "tile", "peak", "of it gradients"], rows)


def measure_time(options: argparse.Namespace) -> None:
    inputs = features(options.pairs, options.features)
    taken: dict[str, list[float]] = {name: [] for name in sides(options)}
    for number in range(options.rounds + 1):
        for name, side in sides(options).items():
            begun = time.perf_counter()
            side(*inputs)
            if number:  # the first round finds its pages and threads
                taken[name].append(time.perf_counter() - begun)
    rows = []
    for name, seconds in taken.items():
        ratios = [own / other for own, other in zip(seconds, taken["dense torch"], strict=True)]
        rows.append([name, middle_and_spread(seconds, 3), f"{statistics.median(ratios):.2f}"])
    print_table([f"loss and gradients of {options.pairs:,} pairs", "seconds", "÷ dense"], rows)


def measure_accuracy(options: argparse.Namespace) -> None:
    rows = []
    for alignment, spread in (("aligned", 0.05), ("half aligned", 1.5)):
        inputs = features(min(options.pairs, 1024), options.features, spread)
        exact = by_autograd(without_diagonal)(*(x.double() for x in inputs))
        for name, side in sides(options).items():
            found = side(*inputs)
            away = [float((x - y).abs().max() / y.abs().max()) for x, y in zip(found, exact, strict=True)]
            rows.append([name, alignment, f"{exact[0]:.1e}", *(f"{error:.1e}" for error in away)])
    print_table(["fp32 against fp64", "pairs are", "loss", "its error", "first", "second", "scale"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=8192, help="for the time, and for dense memory")
    parser.add_argument("--most", type=int, default=32768, help="pairs of the memory measured without a dense matrix")
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--tile", type=int)
    parser.add_argument("--least-tile", type=int, default=256, help="a tile that memory is also measured with")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--open-clip", type=Path, help="folder of an unpacked open_clip_torch wheel")
    parser.add_argument("--quick", action="store_true", help="few pairs, only to see that it runs")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak_of:
        found = sides(options)
        side = found[options.peak_of] if options.peak_of in found else tiled(options.peak_of, options.tile)
        print_peak(side, options.pairs, options.features)
        return
    if options.quick:
        options.pairs, options.most, options.features, options.rounds, options.least_tile = 512, 1024, 32, 2, 64
    print(machine("torch"))
    print(f"{options.features} features, fp32, scale {SCALE:.0f}, {options.threads} threads")
    if "open_clip" not in sides(options):
        print("open_clip's loss.py is not here: not compared (--open-clip names an unpacked open_clip_torch wheel)")
    measure_time(options)
    measure_accuracy(options)
    measure_memory(options)


if __name__ == "__main__":
    main()
