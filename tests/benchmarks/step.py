"""Training step, tokens/s: Trestle's whole product against a plain GPT trained as nanoGPT does and transformers' GPT-2.

    python -m tests.benchmarks.step             # some minutes
    python -m tests.benchmarks.step --quick     # a tiny model, only to see that it runs

All sides train the same decoder on the same tokens with AdamW, gradients clipped. Trestle is `training.worker` itself:
ZeRO-1 with bf16 weights, fp32 masters and fp32 gradient accumulation, batches read ahead from shards, heartbeat,
metrics.jsonl, TensorBoard and console on, and an asynchronous checkpoint in every fifth round, which it begins. The
peers hold fp32 weights under bf16 autocast and read a memory-mapped file. Rounds alternate between the sides; a ratio
is the median over rounds of a side's tokens/s divided by that of the compiled plain GPT in the same round; "all" is
that of all rounds together, those with a checkpoint included. Where others use the machine as well, the ratio of
tokens a CPU-second is the one to look at.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks import peers
from tests.benchmarks.common import machine, middle_and_spread, prepare_shards, print_table
from tests.benchmarks.sides import Gate, Side

BASE = "nanoGPT-style, compiled"
SAVE_ROUNDS = 5
"""Rounds from one checkpoint to the next."""
Work = Callable[[Gate, Any], None]
SIDES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    # name: which work, its options, ranks, threads a rank
    BASE: ("plain", {"compile": True}, 1, 2),
    "nanoGPT-style, eager": ("plain", {"compile": False}, 1, 2),
    "transformers GPT-2": ("transformers", {}, 1, 2),
    "Trestle, eager": ("trestle", {"compile": False}, 1, 2),
    "Trestle, compiled": ("trestle", {"compile": True}, 1, 2),
    "Trestle, eager, 2 ranks": ("trestle", {"compile": False}, 2, 1),
    "Trestle, compiled, 2 ranks": ("trestle", {"compile": True}, 2, 1),
}


def peer_side(gate: Gate, argument: dict[str, Any]) -> None:
    """A peer in a process of its own."""
    shape: peers.Shape = argument["shape"]
    if argument["work"] == "plain":
        model: Any = peers.plain_gpt(shape, compile=argument["compile"])
    else:
        model = peers.transformers_gpt2(shape)
    step = peers.trainer(model, shape, argument["folder"] / "flat.bin", argument["log_every"])
    while True:
        step()
        gate.passed()


def trestle_side(gate: Gate, argument: dict[str, Any]) -> None:
    """The product, stopped between steps where it says that it is alive."""
    from training import worker
    from training.process import Heartbeat, RankEnvironment

    class GatedHeartbeat(Heartbeat):
        def beat(self, step: int) -> None:
            super().beat(step)
            if step > 0:
                gate.passed()

    environment = RankEnvironment.read({**os.environ, "TRESTLE_HEARTBEAT": f"{argument['log']}.{os.environ['RANK']}"})
    worker.Heartbeat = GatedHeartbeat  # type: ignore[misc]
    worker.work(argument["folder"] / "recipe.yaml", argument["overrides"], environment)


def write_recipe(folder: Path, shape: peers.Shape, steps: int) -> None:
    """The recipe that Trestle's sides run, in rounds of so many steps."""
    (folder / "recipe.yaml").write_text(
        f"run: {{directory: {folder}/runs}}\n"
        f"model: {{num_layers: {shape.layers}, hidden_size: {shape.hidden}, num_attention_heads: {shape.heads}, "
        f"sequence_length: {shape.sequence}}}\n"
        f"data: {{mix: [{{shards: {folder}/shards/text}}]}}\n"
        f"optimizer: {{warmup: 20}}\n"
        f"training: {{steps: 1000000, precision: bf16, log_every: {steps}}}\n"
        f"checkpoint: {{every: {SAVE_ROUNDS * steps}, keep: 1}}\n"
    )


def start_side(name: str, folder: Path, shape: peers.Shape, log_every: int) -> Side:
    """The named side, started and warmed up by one step."""
    work, options, ranks, threads = SIDES[name]
    label = "".join(letter if letter.isalnum() else "-" for letter in name)
    log = folder / f"{label}.log"
    argument: dict[str, Any] = {"work": work, "folder": folder, "shape": shape, "log_every": log_every, **options}
    argument["log"] = log
    argument["overrides"] = [
        *("--run.name", label, "--training.compile", str(options.get("compile", False)).lower()),
        *("--batch.global_batch_size", str(shape.batch), "--batch.micro_batch_size", str(shape.batch // ranks)),
    ]
    side: Work = trestle_side if work == "trestle" else peer_side
    return Side(name, side, argument, ranks=ranks, threads=threads, log=log)


Speeds = dict[str, list[tuple[float, float]]]


def compare(names: list[str], shape: peers.Shape, rounds: int, steps: int) -> Speeds:
    """Tokens a second and tokens a CPU-second of each side in each round."""
    speeds: Speeds = {name: [] for name in names}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trestle-step-")))
        tokens = prepare_shards(folder, sequence_length=shape.sequence, vocab_size=shape.vocabulary)
        tokens.tofile(folder / "flat.bin")
        write_recipe(folder, shape, steps)
        sides = [stack.enter_context(start_side(name, folder, shape, steps)) for name in names]
        for side in sides:
            side.run(2 * steps - 1)  # after the first one that starting it took: rounds end where Trestle saves
        for number in range(rounds):
            # Each round begins elsewhere, so that no side always follows the same one.
            for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
                seconds, cpu_seconds = side.run(steps)
                speeds[side.name].append((steps * shape.tokens / seconds, steps * shape.tokens / cpu_seconds))
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10, help="steps a round; the last of them is logged")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one short round, nothing compiled")
    options = parser.parse_args()
    shape, rounds, steps, names = peers.Shape(), options.rounds, options.steps, list(options.sides)
    if options.quick:
        shape, rounds, steps = peers.Shape(layers=2, hidden=64, heads=2, sequence=64, vocabulary=512), 1, 2
        names = ["nanoGPT-style, eager", "transformers GPT-2", "Trestle, eager"]
    elif BASE not in names:
        names.insert(0, BASE)
    speeds = compare(names, shape, rounds, steps)
    base = names[0]
    print(machine("torch", "transformers", "deepspeed", "megatron-core"))
    print(f"{shape}, bf16; {rounds} rounds of {steps} steps; median (least-greatest); load {os.getloadavg()[0]:.1f}\n")
    rows = []
    for name in names:
        by_clock, by_cpu = (
            [mine[i] / theirs[i] for mine, theirs in zip(speeds[name], speeds[base], strict=True)] for i in (0, 1)
        )
        _, _, ranks, threads = SIDES[name]
        whole = [statistics.harmonic_mean(by_cpu_second[1] for by_cpu_second in speeds[one]) for one in (name, base)]
        tokens = [f"{statistics.median(speed[i] for speed in speeds[name]):.0f}" for i in (0, 1)]
        rows.append([name, f"{ranks} x {threads}", middle_and_spread(by_clock), middle_and_spread(by_cpu)])
        rows[-1] += [f"{whole[0] / whole[1]:.2f}", *tokens]
    print(f"ratios to {base}:")
    print_table(["side", "ranks x threads", "tokens/s", "per CPU-second", "all", "tokens/s", "per CPU-second"], rows)


if __name__ == "__main__":
    main()
