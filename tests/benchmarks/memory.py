"""A rank's memory by formula beside the peak of whole steps, case by case: predicted | measured | ratio.

    python -m tests.benchmarks.memory                # one rank: on a GPU if there is one, else on the CPU at toy size
    python -m tests.benchmarks.memory --ranks 4      # every layout of four ranks (a GPU each)

On a CPU measured is the peak of live tensors (torch.profiler), on a GPU `torch.cuda.max_memory_allocated`. The cases
are those of tests/distributed/test_memory.py, which asks for 5 % at toy size; on a GPU models are 16 times as wide.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Literal

import torch

from tests.benchmarks.common import machine, print_table
from tests.distributed.launch import run
from tests.distributed.memory_cases import cases, document_of
from tests.distributed.memory_table import Row, rows_of

GPU_SCALE = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, choices=(1, 2, 4), default=1)
    parser.add_argument(
        "--scale", type=int, help=f"widths, sequence and vocabulary of toys times this; {GPU_SCALE} on a GPU"
    )
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    parser.add_argument("--quick", action="store_true", help="two cases")
    options = parser.parse_args()
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    scale = options.scale or (GPU_SCALE if device == "cuda" else 1)
    rows = measure(options.ranks, device, scale, most=2 if options.quick else None)
    print(f"{torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}, {options.ranks} ranks, toys times {scale}")
    print(machine("torch", "megatron-core", "deepspeed"))
    print_table(
        ["case", "rank", "stage", "predicted, MB", "measured, MB", "ratio", "peak in: predicted | measured"],
        [
            [
                row.case,
                str(row.rank),
                str(row.stage),
                f"{row.predicted / 1e6:,.2f}",
                f"{row.measured / 1e6:,.2f}",
                f"{row.ratio:.3f}",
                row.moment,
            ]
            for row in rows
        ],
    )
    ratios = [row.ratio for row in rows]
    print(f"ratio {min(ratios):.3f} to {max(ratios):.3f} over {len(ratios)} ranks of {device}")
    if options.json:
        options.json.write_text(json.dumps([{**vars(row), "ratio": row.ratio} for row in rows], indent=1))


def measure(ranks: int, device: Literal["cpu", "cuda"], scale: int, most: int | None = None) -> list[Row]:
    """Every case of so many ranks, or the first `most`."""
    chosen = cases(ranks)[:most]
    documents = [document_of(case, ranks, scale) for case in chosen]
    by_rank = run("tests.distributed.memory:measure_documents", ranks, documents, deadline=1800)
    together = zip(chosen, *by_rank, strict=True)
    return [row for case, *found in together for row in rows_of(case, found, device, scale)]


if __name__ == "__main__":
    main()
