"""The contrastive loss beside the dense one on this machine's device: time, and memory beyond the features.

    python -m tests.benchmarks.gpu_loss --pairs 32768 --result FILE

Forward and backward of both, fp32 without TF32; a side that does not fit is a result as well. On a CPU the time alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.contrastive import Side, by_autograd, dense, features, tiled
from tests.benchmarks.gpu_search import OK

TILES = (2048, 4096, 8192)


def measure(side: Side, inputs: tuple[torch.Tensor, ...], rounds: int) -> tuple[float | None, int | None]:
    """Median seconds, and bytes beyond the inputs, gradients included; (None, None) when they do not fit."""
    on_gpu = inputs[0].is_cuda
    times, taken = [], None
    try:
        for number in range(rounds + 1):
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            begun = time.perf_counter()
            kept = side(*inputs)
            if on_gpu:
                torch.cuda.synchronize()
                taken = torch.cuda.max_memory_allocated() - before
            if number:
                times.append(time.perf_counter() - begun)
            assert kept[0].isfinite()
            del kept
    except torch.OutOfMemoryError:
        return None, None
    return statistics.median(times), taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=32_768)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = False
    inputs = tuple(tensor.to(device) for tensor in features(options.pairs, options.features))
    sides: dict[str, Side] = {"Trestle, its own choice of tiles": tiled("clip", None)}
    sides |= {f"Trestle, tiles of {tile:,}": tiled("clip", tile) for tile in TILES if tile <= options.pairs}
    sides["dense torch"] = by_autograd(dense)
    found: list[dict[str, Any]] = []
    for name, side in sides.items():
        seconds, taken = measure(side, inputs, options.rounds)
        found.append({"side": name, "seconds": seconds, "bytes": taken})
    options.result.write_text(json.dumps({"status": OK, "features": options.features, "sides": found}))


if __name__ == "__main__":
    main()
