"""What saving and loading cost a rank on 1, 2 and 4 ranks: bytes written, read, and seconds, of one and the same model.

    python -m tests.benchmarks.checkpoint_scaling             # a decoder of 12 M parameters: 150 MB of state
    python -m tests.benchmarks.checkpoint_scaling --quick     # a tiny one, only to see that it runs

Ranks are processes over gloo under ZeRO 1 in bf16, with the engine, the writer and the reader of training. A save is
blocking here; a load verifies (each rank its share of the files) and reads what the rank holds. `behind a URL` reads
the same checkpoint in ranges, as from an object store, and counts what it fetched. Seconds are the slowest rank's; on
fewer cores than ranks they cannot fall as the bytes do.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from modeling import groups
from modeling.execution import Execution
from modeling.gpt.config import GPTConfig
from modeling.layout import Layout
from modeling.registry import family
from tests.benchmarks.common import machine, print_table
from tests.distributed.launch import run
from training.checkpoint import Checkpoint, CheckpointWriter
from training.checkpoint.remote import RemoteFolder
from training.config import OptimizerConfig, ParallelConfig
from training.engine import start_engine

STEP = 1


def save_and_load(argument: dict[str, Any]) -> dict[str, float]:
    """On every rank of a launch: what this rank wrote and read, in bytes and seconds."""
    rank, world = dist.get_rank(), dist.get_world_size()
    groups.start_groups(Layout())
    config = GPTConfig(**argument["model"])
    chosen, parallel = family("gpt"), ParallelConfig(zero_stage=1)
    engine = start_engine(chosen, config, OptimizerConfig(), parallel, Execution(Layout(), "bf16"), 1)
    run_folder = Path(argument["folder"]) / f"{world}-ranks"
    writer = CheckpointWriter(run_folder / "checkpoints", rank, world, asynchronous=False)
    pieces = list(engine.pieces())
    dist.barrier()
    begun = time.perf_counter()
    writer.save(STEP, pieces, {})
    saved = time.perf_counter() - begun
    own = run_folder / "checkpoints" / "step-00000001" / f"rank-{rank:05d}.safetensors"
    found: dict[str, float] = {"written": own.stat().st_size, "save": saved}
    dist.barrier()
    begun = time.perf_counter()
    checkpoint = Checkpoint(own.parent)
    checkpoint.verify(rank, world)
    engine.load(checkpoint.read, 0)
    found["load"] = time.perf_counter() - begun
    dist.barrier()
    remote = RemoteFolder(argument["folder"], run_folder.name).source("step-00000001")
    begun = time.perf_counter()
    far = Checkpoint(remote)
    engine.load(far.read, 0)
    found |= {"remote_load": time.perf_counter() - begun, "fetched": remote.bytes_read}
    assert all(torch.equal(far.read(piece), tensor.reshape(-1).cpu()) for piece, tensor in pieces)
    engine.close()
    groups.stop_groups()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a tiny decoder on 1 and 2 ranks, only to see that it runs"
    )
    options = parser.parse_args()
    sizes = {"num_layers": 4, "hidden_size": 448, "num_attention_heads": 7, "vocab_size": 6144}
    if options.quick:
        sizes = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 512}
    rows = []
    with tempfile.TemporaryDirectory(prefix="trestle-scaling-") as folder:
        for world in (1, 2) if options.quick else (1, 2, 4):
            argument = {"folder": folder, "model": {**sizes, "sequence_length": 64}}
            ranks = run("tests.benchmarks.checkpoint_scaling:save_and_load", world, argument, deadline=240.0)
            rows.append([str(world), *(cell(ranks, *column) for column in COLUMNS.values())])
            print(f"{world} ranks done", file=sys.stderr, flush=True)
    print(machine("torch", "deepspeed"))
    print_table(["ranks", *COLUMNS], rows)


COLUMNS = {
    "written a rank, MB": ("written", 1e6),
    "save, s": ("save", 1.0),
    "verify and load, s": ("load", 1.0),
    "fetched a rank behind a URL, MB": ("fetched", 1e6),
    "load behind a URL, s": ("remote_load", 1.0),
}


def cell(ranks: list[dict[str, float]], key: str, unit: float) -> str:
    """The rank with the most."""
    return f"{max(one[key] for one in ranks) / unit:.2f}"


if __name__ == "__main__":
    main()
