"""How cost grows: `python -m tests.benchmarks.scaling` (some minutes; `--quick`: only that it runs).

One rank a core with one thread each. Step time with sequence length, with layers and with micro-batches under a
pipeline, whose bubble is compared with (p - 1) / (m + p - 1); step time of the same work on 1 and 2 ranks by tensor,
data and pipeline parallelism; start-up with the number of ranks, and of one rank's process groups in worlds of up to
1,024; what ranks hold in worlds of 1, 2 and 4. Cases take turns, figures are medians, and the machine's load is said:
where others use it, too, little can be read from a clock, and the least of many rounds (`--least`) is nearer the truth.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.common import machine, prepare_shards, print_table
from tests.distributed.launch import run

SHAPE: dict[str, Any] = {"num_layers": 8, "hidden_size": 256, "num_attention_heads": 4, "sequence_length": 256}
SHAPE |= {"vocab_size": 256, "tie_embeddings": False}  # next to no embeddings and head, so that stages are equal
TINY: dict[str, Any] = {**SHAPE, "num_layers": 4, "hidden_size": 32, "sequence_length": 16}
ONE: dict[str, Any] = {"zero_stage": 1}

Section = dict[str, Any]
"""`title`, `note`, `head` and `rows` of a table."""


def case(shape: dict[str, Any], layout: dict[str, Any], size: int, count: int, *, step: bool = True) -> dict[str, Any]:
    return {"shape": shape, "layout": layout, "micro_batch_size": size, "micro_batches": count, "step": step}


class Launches:
    """How the benchmarks are run, and what the newest launch of each world size said of its start."""

    def __init__(self, *, quick: bool, rounds: int, middle: Callable[[list[float]], float]) -> None:
        self.quick, self.rounds, self.middle = quick, rounds, middle
        self.starts: dict[int, list[dict[str, float]]] = {}

    def timed(self, world_size: int, cases: list[dict[str, Any]], *, most: int = 1, fresh: bool = False) -> list[float]:
        """The seconds of each case on so many ranks, `most` times the rounds; `fresh`: with imports."""
        argument = {"cases": cases, "rounds": most * self.rounds}
        ranks = run("tests.benchmarks.scaling_ranks:time_cases", world_size, argument, deadline=900, fresh=fresh)
        self.starts[world_size] = [rank["start"] for rank in ranks]
        return [self.middle(found) for found in ranks[0]["seconds"]]


def by_shape(on: Launches) -> list[Section]:
    """The same number of tokens in longer and longer samples, and through more and more layers."""
    few, tokens = ({**TINY, "num_layers": 2}, 64) if on.quick else ({**SHAPE, "num_layers": 4}, 2048)
    lengths = [16, 32, 64] if on.quick else [128, 256, 512, 1024, 2048]
    counts = [1, 2, 4] if on.quick else [2, 4, 8, 16]
    cases = [case({**few, "sequence_length": s}, ONE, tokens // s, 1) for s in lengths]
    cases += [case({**(TINY if on.quick else SHAPE), "num_layers": n}, ONE, 2, 1) for n in counts]
    found = on.timed(1, cases)
    seconds, deeper = found[: len(lengths)], found[len(lengths) :]
    flops = [flops_of({**few, "sequence_length": s}) for s in lengths]
    longer = {
        "title": "sequence",
        "note": f"{tokens} tokens a step, {few['num_layers']} layers of {few['hidden_size']}, one rank",
        "head": ["sequence", "seconds a step", "÷ the first", "FLOPs ÷ the first"],
        "rows": [[s, seconds[i], seconds[i] / seconds[0], flops[i] / flops[0]] for i, s in enumerate(lengths)],
    }
    slope = (deeper[-1] - deeper[0]) / (counts[-1] - counts[0])
    straight = [deeper[0] + slope * (n - counts[0]) for n in counts]
    layers = {
        "title": "layers",
        "note": "one rank, micro-batch 2; the line through the first and the last",
        "head": ["layers", "seconds a step", "seconds a layer", "÷ the straight line"],
        "rows": [[n, deeper[i], deeper[i] / n, deeper[i] / straight[i]] for i, n in enumerate(counts)],
    }
    return [longer, layers]


def flops_of(shape: dict[str, Any]) -> float:
    """Of a token; attention causal, as it is computed."""
    from modeling.gpt.config import GPTConfig
    from modeling.gpt.flops import flops_per_token

    return flops_per_token(GPTConfig(**shape), causal=True)


def by_micro_batches(on: Launches) -> list[Section]:
    """Forward and backward under pipelines of two equal stages: T(m) = t m + what the bubble takes."""
    # Short, so that among many rounds some meet nobody else on the cores.
    shape, size, p = (TINY, 1, 2) if on.quick else ({**SHAPE, "num_layers": 4, "sequence_length": 128}, 1, 2)
    counts = [2, 4] if on.quick else [2, 4, 8, 16]
    layouts = [{**ONE, "pipeline": p, "virtual_pipeline": virtual} for virtual in (1, 2)]
    found = on.timed(p, [case(shape, layout, size, m, step=False) for layout in layouts for m in counts], most=3)
    rows: list[list[Any]] = []
    for virtual, seconds in ((1, found[: len(counts)]), (2, found[len(counts) :])):
        each, bubble = line(counts, seconds)
        for m, taken in zip(counts, seconds, strict=True):
            theory = (p - 1) / (virtual * m + p - 1)
            measured = 1 - m * each / taken
            rows.append([virtual, m, taken, measured, theory, measured / theory])
        rows.append([virtual, "all", each, bubble / each, (p - 1) / virtual, bubble / each * virtual / (p - 1)])
    note = (
        f"{p} stages on {p} ranks; bubble: 1 - m t / T(m), t from the straight line through all T(m); theory: "
        "(p - 1) / (v m + p - 1). Row all: t, and what is left of T at m = 0 in units of t"
    )
    head = ["chunks a stage", "micro-batches", "seconds", "bubble", "theory", "measured ÷ theory"]
    return [{"title": "micro-batches", "note": note, "head": head, "rows": rows}]


def line(x: list[int], y: list[float]) -> tuple[float, float]:
    """Slope and intercept by least squares of the relative errors: long times are no more exact than short ones."""
    weights = [1 / value**2 for value in y]
    total = sum(weights)
    mean_x = sum(w * a for w, a in zip(weights, x, strict=True)) / total
    mean_y = sum(w * b for w, b in zip(weights, y, strict=True)) / total
    around = [(w, a - mean_x, b - mean_y) for w, a, b in zip(weights, x, y, strict=True)]
    slope = sum(w * a * b for w, a, b in around) / sum(w * a * a for w, a, _ in around)
    return slope, mean_y - slope * mean_x


def by_degree(on: Launches) -> list[Section]:
    """The same work, 16 samples, on one rank and on two; launches take turns."""
    shape, samples = (TINY, 4) if on.quick else (SHAPE, 16)
    layouts = {
        "data 2": {**ONE},
        "tensor 2": {**ONE, "tensor": 2},
        "tensor 2, sequence": {**ONE, "tensor": 2, "sequence": True},
        "pipeline 2": {**ONE, "pipeline": 2},
    }
    two = [case(shape, layout, 2, samples // 2 // (2 if name == "data 2" else 1)) for name, layout in layouts.items()]
    found: dict[str, list[float]] = {name: [] for name in ("one rank", *layouts)}
    for _ in range(1 if on.quick else 3):
        (alone,) = on.timed(1, [case(shape, ONE, 2, samples // 2)])
        together = on.timed(2, two)
        for name, seconds in zip(found, [alone, *together], strict=True):
            found[name].append(seconds)
    base = on.middle(found["one rank"])
    rows = [[name, on.middle(values), base / on.middle(values)] for name, values in found.items()]
    head = ["layout", "seconds a step", "times as fast"]
    return [{"title": "degrees", "note": f"{samples} samples a step", "head": head, "rows": rows}]


def by_start(on: Launches) -> list[Section]:
    """From the start of a rank's process to its first step, and its process groups in a large world."""
    rows: list[list[Any]] = []
    keys = ("all", "imports", "groups", "engine", "first_step", "cpu")
    for fresh in [False] if on.quick else [True, False]:
        for world in [1, 2] if on.quick else [1, 2, 4]:
            if world not in on.starts or not on.quick:
                on.timed(world, [case(TINY, ONE, 1, 1)], fresh=fresh)
            slowest = max(on.starts[world], key=lambda one: one["all"])
            rows.append([f"{world}, {'fresh' if fresh else 'forked'}", *(slowest[key] for key in keys)])
    for world in [8, 64] if on.quick else [8, 64, 256, 1024]:
        rows.append([f"{world:,}, one rank's groups alone", "-", "-", groups_seconds(world), *["-"] * 3])
    head = ["ranks", "seconds to the first step", "imports", "groups", "engine", "first step", "CPU-seconds"]
    note = (
        f"the slowest rank; {os.cpu_count()} cores, which more ranks than that share; forked: from a process that has "
        "imported what ranks import, as a standby has"
    )
    return [{"title": "start", "note": note, "head": head, "rows": rows}]


def groups_seconds(world: int) -> float:
    """What one rank spends on making its process groups, TP 8, a pipeline of up to 16; nobody is spoken to."""
    from modeling.layout import Layout
    from tests.modeling.worlds import fake_rank

    begun = time.perf_counter()
    with fake_rank(Layout(tensor=min(8, world), pipeline=max(1, min(16, world // 16))), world // 2, world):
        return time.perf_counter() - begun


def by_world(on: Launches) -> list[Section]:
    """What ranks hold while the whole product runs, their batch growing with their number."""
    worlds = [1, 2] if on.quick else [1, 2, 4]
    with tempfile.TemporaryDirectory(prefix="trestle-scaling-") as name:
        folder = Path(name)
        prepare_shards(folder, sequence_length=64, vocab_size=512)
        (folder / "recipe.yaml").write_text(
            "run: {name: test}\n"
            "model: {num_layers: 4, hidden_size: 128, num_attention_heads: 4, sequence_length: 64}\n"
            f"data: {{mix: [{{shards: {folder}/shards/text}}]}}\n"
            "batch: {global_batch_size: 2, micro_batch_size: 1}\n"
            "training: {steps: 6, log_every: 1}\ncheckpoint: {every: 2}\n"
        )
        argument = {"recipe": str(folder / "recipe.yaml"), "folder": name, "worlds": worlds}
        ranks = run("tests.distributed.rank_memory:weigh_worlds", worlds[-1], argument, deadline=600)
    rows = []
    for number, size in enumerate(worlds):
        first, others = ranks[0][number], [rank[number] for rank in ranks[1:size]]
        row: list[Any] = [size]
        for key in ("tensor_bytes", "python_bytes", "python_peak_bytes"):
            row += [first[key] / 1e6, max((one[key] for one in others), default=0) / 1e6 if others else "-"]
        rows.append(row)
    head = ["ranks", "tensors, MB: rank 0", "others", "Python, MB: rank 0", "others", "its peak: rank 0", "others"]
    note = "ZeRO 1 divides the optimizer's state, so that tensors become fewer"
    return [{"title": "memory", "note": note, "head": head, "rows": rows}]


SECTIONS: dict[str, Callable[[Launches], list[Section]]] = {
    "shape": by_shape,
    "micro-batches": by_micro_batches,
    "degrees": by_degree,
    "start": by_start,
    "memory": by_world,
}
QUICK = ("shape", "micro-batches", "start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help=f"default: all; with --quick {QUICK}")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--least", action="store_true", help="the least of the rounds instead of their median")
    parser.add_argument("--json", type=Path, help="write the tables there as well")
    parser.add_argument("--quick", action="store_true", help="toy size, only to see that it runs")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else the ranks would outlive us
    rounds = 2 if options.quick else options.rounds
    on = machine("torch", "megatron-core", "deepspeed")
    launches = Launches(quick=options.quick, rounds=rounds, middle=min if options.least else statistics.median)
    print(f"{on}; {'least' if options.least else 'median'} of {rounds} rounds\n")
    tables: list[Section] = []
    for name in options.only or (QUICK if options.quick else SECTIONS):
        before = os.getloadavg()[0]
        for section in SECTIONS[name](launches):
            section["load"] = [before, os.getloadavg()[0]]
            tables.append(section)
            print(f"{section['title']}: {section['note']}; load {before:.1f} before, {section['load'][1]:.1f} after")
            print_table(section["head"], [[cell(value) for value in row] for row in section["rows"]])
            print(flush=True)
        if options.json:
            date = datetime.now(UTC).isoformat(timespec="seconds")
            options.json.write_text(json.dumps({"machine": on, "date": date, "tables": tables}, indent=1) + "\n")


def cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
