"""The loop's stall for an asynchronous checkpoint against a blocking save of the same state, and what training loses.

    python -m tests.benchmarks.checkpoint_stall             # 60 M parameters: 0.7 GB a checkpoint
    python -m tests.benchmarks.checkpoint_stall --quick     # a tiny state, only to see that it runs

The state is what a rank hands over in training: fp32 weights and both moments, in tensors of a decoder's sizes. Saves
go through `CheckpointWriter` with all that belongs to them (checksums, fsync, manifest, rename), blocking and beside
the loop in turn. While one is written the loop works on steps of bf16 matrix products, then does as many steps alone:
the difference is what writing takes from training, and with the stall it is all that the loop loses.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from tests.benchmarks.common import machine, middle_and_spread, print_table
from training.checkpoint import CheckpointWriter, Piece, Retention

HIDDEN = 1024


def state(parameters: int) -> list[tuple[Piece, torch.Tensor]]:
    """Weights and moments of about so many parameters, in matrices of 4 HIDDEN x HIDDEN."""
    shape = (4 * HIDDEN, HIDDEN)
    pieces = []
    for layer in range(max(1, parameters // (4 * HIDDEN * HIDDEN))):
        for kind in ("weight", "exp_avg", "exp_avg_sq"):
            pieces.append((Piece.whole(f"layers.{layer}.weight", kind, shape), torch.randn(shape).reshape(-1)))
    return pieces


class Load:
    """Training's stand-in: steps of bf16 matrix products on all threads."""

    def __init__(self, size: int) -> None:
        self._a = torch.randn(size, size).bfloat16()

    def step(self) -> None:
        for _ in range(8):
            self._a @ self._a

    def seconds(self, steps: int) -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            self.step()
        return time.perf_counter() - begun


def stall(writer: CheckpointWriter, step: int, pieces: list[tuple[Piece, torch.Tensor]]) -> float:
    """Seconds until the loop may go on."""
    begun = time.perf_counter()
    writer.save(step, pieces, {"tokens": step})
    return time.perf_counter() - begun


def one_round(
    number: int,
    writers: dict[str, CheckpointWriter],
    pieces: list[tuple[Piece, torch.Tensor]],
    load: Load,
) -> dict[str, float]:
    """Seconds of everything, once; the asynchronous save is over before the blocking one begins."""
    found = {"blocking": stall(writers["blocking"], number, pieces)}
    writer = writers["asynchronous"]
    found["stall"] = stall(writer, number, pieces)
    begun, steps = time.perf_counter(), 0
    while writer.last_verified != number:
        load.step()
        steps += 1
    beside = time.perf_counter() - begun
    writer.wait()
    alone = load.seconds(max(1, steps))
    found |= {"writing": beside, "steps": float(steps), "added": max(0.0, beside - alone), "alone": alone}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=60e6)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    parser.add_argument("--quick", action="store_true", help="a tiny state, two rounds, only to see that it runs")
    options = parser.parse_args()
    parameters, rounds = (5_000_000, 2) if options.quick else (int(options.parameters), options.rounds)
    pieces = state(parameters)
    gigabytes = sum(tensor.nbytes for _, tensor in pieces) / 1e9
    with tempfile.TemporaryDirectory(prefix="trestle-stall-", dir=options.folder) as folder:
        writers = {
            name: CheckpointWriter(Path(folder) / name, 0, 1, name == "asynchronous", Retention(keep=1))
            for name in ("blocking", "asynchronous")
        }
        load = Load(512)
        one_round(1, writers, pieces, load)  # the host copy's pages are touched for the first time here
        found = [one_round(number, writers, pieces, load) for number in range(2, rounds + 2)]
    report(found, gigabytes)


def report(found: list[dict[str, float]], gigabytes: float) -> None:
    """Ratio first."""
    ratio = [r["stall"] / r["blocking"] for r in found]
    total = [(r["stall"] + r["added"]) / r["blocking"] for r in found]
    slower = [(r["writing"] / r["alone"] - 1) for r in found]
    print(machine("torch", "safetensors"))
    print(f"{gigabytes:.2f} GB of state, {len(found)} rounds; median (least-greatest)\n")
    rows = [
        ["stall ÷ blocking save", middle_and_spread(ratio, 3)],
        ["all that the loop loses ÷ blocking save", middle_and_spread(total, 3)],
        ["steps slower while it is written, by", middle_and_spread([100 * s for s in slower], 0) + " %"],
        ["blocking save, s", middle_and_spread([r["blocking"] for r in found])],
        ["stall of an asynchronous one, s", middle_and_spread([r["stall"] for r in found], 3)],
        ["written beside the loop in, s", middle_and_spread([r["writing"] for r in found])],
        ["copied, GB/s", f"{gigabytes / statistics.median(r['stall'] for r in found):.1f}"],
    ]
    print_table(["figure", "value"], rows)


if __name__ == "__main__":
    main()
