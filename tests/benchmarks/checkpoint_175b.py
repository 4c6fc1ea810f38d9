"""What every rank writes of GPT-3 175B on 1,024 ranks: a dry run with fake process groups and meta tensors.

    python -m tests.benchmarks.checkpoint_175b              # TP 8 x PP 16 x DP 8, ZeRO 1
    python -m tests.benchmarks.checkpoint_175b --quick      # a tiny decoder on 16 ranks, only to see that it runs

Each stage is built as its rank sees it, without memory; the optimizer's state is divided as DeepSpeed's BF16_Optimizer
divides it, and the pieces go through the engine's and the format's own code: what is counted are the bytes of the
headers and records that a save would write. One tensor-parallel rank a stage is built and stands for all of them, which
hold as much. The index over all records is what every rank builds before it loads its own part.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from modeling.execution import Execution
from modeling.gpt.config import GPTConfig
from modeling.gpt.presets import PRESETS
from modeling.layout import Layout
from modeling.registry import family
from tests.benchmarks.common import machine, print_table
from tests.modeling.worlds import fake_rank, first_rank_of, meta_chunks
from training.checkpoint import Piece
from training.checkpoint import format as fmt
from training.checkpoint.index import Index
from training.config import OptimizerConfig, ParallelConfig
from training.engine.base import EngineInputs, parameter_groups
from training.engine.fragments import Fragment

_ALIGNMENT = 2  # elements a data-parallel rank: BF16_Optimizer.nccl_start_alignment_factor, DeepSpeed 0.19.8

Pieces = list[tuple[Piece, torch.dtype]]


@dataclass(frozen=True)
class RankFiles:
    """The files of one rank in bytes."""

    data: int
    header: int
    record: bytes
    pieces: Pieces


def fragments(inputs: EngineInputs, data: int, data_size: int) -> Iterator[Fragment]:
    """What a data-parallel rank holds under ZeRO 1: an equal part of each group's flat tensor."""
    shard_of = {id(parameter): shard for parameter, shard in inputs.shards}
    for group in parameter_groups(inputs):
        total = sum(parameter.numel() for parameter in group["params"])
        part = -(-total // (_ALIGNMENT * data_size)) * _ALIGNMENT
        position = 0
        for parameter in group["params"]:
            low, high = max(position, data * part), min(position + parameter.numel(), (data + 1) * part)
            if low < high:
                state = torch.empty(high - low, device="meta")
                yield Fragment(shard_of[id(parameter)], low - position, state, state, state)
            position += parameter.numel()


def stage(config: GPTConfig, parallel: ParallelConfig, pipeline: int, data_size: int) -> list[RankFiles]:
    """The files of a stage's ranks with tensor-parallel rank 0, one for each data-parallel rank."""
    layout = Layout(parallel.tensor, parallel.pipeline, parallel.virtual_pipeline, parallel.sequence)
    world_size = parallel.model_parallel * data_size
    execution = Execution(layout, "bf16")
    with fake_rank(layout, first_rank_of(layout, pipeline, world_size), world_size):
        chunks, shards = meta_chunks("gpt", config, execution)
    inputs = EngineInputs(family("gpt"), config, chunks, shards, OptimizerConfig(), parallel, execution)
    found = []
    for data in range(data_size):
        pieces: Pieces = []
        for fragment in fragments(inputs, data, data_size):
            low, high = fragment.owned()
            if high > low:
                pieces += [(fragment.piece(kind, low, high), torch.float32) for kind, _ in fragment.tensors()]
        head, entries = fmt.plan_file(pieces)
        nbytes = len(head) + sum(entry.nbytes for entry in entries)
        found.append(RankFiles(nbytes, len(head), fmt.record(entries, None), pieces))
    return found


def manifest_size(ranks: list[RankFiles], tensor: int) -> int:
    files = {}
    for number in range(len(ranks) * tensor):
        one = ranks[number // tensor]
        files[fmt.data_file(number)] = {"size": one.data, "sha256": "0" * 64}
        files[fmt.record_file(number)] = {"size": len(one.record), "sha256": "0" * 64}
    return len(json.dumps({"files": files}, indent=1))


def index_of(ranks: list[RankFiles], tensor: int) -> tuple[Index, float]:
    """The index over all records, as every rank builds it that loads, and the seconds that it took."""
    begun = time.perf_counter()
    index = Index()
    for number in range(len(ranks) * tensor):  # the other tensor-parallel ranks' are as long
        one = ranks[number // tensor]
        index.add(fmt.data_file(number), one.data, json.loads(one.record)["pieces"])
    return index, time.perf_counter() - begun


def spread(values: list[int], unit: int) -> str:
    return " / ".join(f"{value / unit:.3f}" for value in (min(values), statistics.median(values), max(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny decoder on 16 ranks, only to see that it runs")
    options = parser.parse_args()
    if options.quick:
        config = GPTConfig(num_layers=4, hidden_size=64, num_attention_heads=4, sequence_length=32, vocab_size=512)
        parallel, data_size = ParallelConfig(tensor=2, pipeline=2), 4
    else:
        config = GPTConfig(**{**PRESETS["gpt3-175b"], "vocab_size": 51200})
        parallel, data_size = ParallelConfig(tensor=8, pipeline=16), 8
    begun = time.perf_counter()
    ranks = [one for number in range(parallel.pipeline) for one in stage(config, parallel, number, data_size)]
    planned = time.perf_counter() - begun
    report(config, parallel, ranks, planned)


def report(config: GPTConfig, parallel: ParallelConfig, ranks: list[RankFiles], planned: float) -> None:
    """The table."""
    world = len(ranks) * parallel.tensor
    total = parallel.tensor * sum(one.data for one in ranks)
    parameters = family("gpt").parameter_count(config)
    index, seconds = index_of(ranks, parallel.tensor)
    rows = [
        ["parameters", f"{parameters:,}"],
        ["ranks", f"{world:,} = TP {parallel.tensor} x PP {parallel.pipeline} x DP {len(ranks) // parallel.pipeline}"],
        ["checkpoint, GB", f"{total / 1e9:,.3f}"],
        ["bytes a parameter (4 weight + 8 moments)", f"{total / parameters:.3f}"],
        ["data a rank, GB: least / median / most", spread([one.data for one in ranks], 10**9)],
        ["pieces a rank: least / median / most", spread([len(one.pieces) for one in ranks], 1)],
        ["safetensors header a rank, kB", spread([one.header for one in ranks], 1000)],
        ["record a rank, kB", spread([len(one.record) for one in ranks], 1000)],
        ["files", f"{2 * world + 2:,} (two a rank, manifest and digest)"],
        ["manifest, kB", f"{manifest_size(ranks, parallel.tensor) / 1000:.0f}"],
        ["all records, MB", f"{parallel.tensor * sum(len(one.record) for one in ranks) / 1e6:.2f}"],
        ["index over all records, s", f"{seconds:.2f}, {len(index.names()):,} tensors"],
        ["time to plan, s", f"{planned:.1f} ({parallel.pipeline} stages built)"],
    ]
    print(machine("torch", "megatron-core"))
    print_table(["figure", "value"], rows)


if __name__ == "__main__":
    main()
