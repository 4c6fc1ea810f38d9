"""A profile for the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.tables import size, table

NAME_WIDTH = 70
"""Characters of a kernel's name that are shown."""

MOST_RANKS = 32
IDLE_WITH_KERNELS = (
    "idle: no kernel runs on the GPU. communication: NCCL's kernels, waiting for other ranks included; alone: while no "
    "other kernel runs. The phases are those of the host, which runs ahead of the GPU. A kernel's share is of all "
    "kernels' time."
)
IDLE_WITHOUT = (
    "idle: neither an operator nor communication runs on any thread: Python, mostly. communication includes waiting "
    "for other ranks; alone: while no operator runs. An operator's share is of all operators' self time."
)


def shown(ranks: Sequence[dict[str, Any]], place: Path, top: int) -> str:
    """The summaries of `training.profiling`, one a rank, as text: shares, the first rank's `top`, what comes next."""
    first = ranks[0]
    kernels = first["device"] == "cuda"
    last_step = first["first_step"] + first["steps"] - 1
    parts = [
        f"steps {first['first_step']} to {last_step}, under the profiler, which costs time itself",
        _rank_table(ranks),
        _top_table(first, top),
        IDLE_WITH_KERNELS if kernels else IDLE_WITHOUT,
        _next(ranks, place),
    ]
    return "\n\n".join(parts)


def _rank_table(ranks: Sequence[dict[str, Any]]) -> str:
    phases = list(dict.fromkeys(name for one in ranks for name in one["phases"]))
    memory = "peak GPU memory" if ranks[0]["device"] == "cuda" else "peak resident"
    heads = (
        "rank",
        "ms a step",
        "idle",
        "communication",
        "alone",
        *(name.replace("_", " ") for name in phases),
        memory,
    )
    rows = [
        (
            str(one["rank"]),
            f"{one['step_seconds'] * 1e3:.4g}",
            _percent(one["idle_share"]),
            _percent(one["communication_share"]),
            _percent(one["communication_alone_share"]),
            *(_percent(one["phases"].get(name, 0.0)) for name in phases),
            size(one["peak_memory_bytes"]),
        )
        for one in ranks[:MOST_RANKS]
    ]
    more = f"\nand {len(ranks) - MOST_RANKS} ranks more: --json has them" if len(ranks) > MOST_RANKS else ""
    return table(heads, rows) + more


def _top_table(one: dict[str, Any], most: int) -> str:
    what = "kernel" if one["device"] == "cuda" else "operator"
    rows = [
        (
            _short(row["name"]),
            f"{row['seconds'] * 1e3 / one['steps']:.4g}",
            _percent(row["share"]),
            f"{row['calls'] / one['steps']:.4g}",
        )
        for row in one["top"][:most]
    ]
    return table((f"{what} (rank {one['rank']})", "self ms a step", "share", "calls a step"), rows)


def _next(ranks: Sequence[dict[str, Any]], place: Path) -> str:
    folder = shlex.quote(str(place))
    return "\n".join(
        [
            "look closer:",
            f"  Perfetto     https://ui.perfetto.dev (or chrome://tracing): open {folder}/{ranks[0]['trace']}",
            f"  TensorBoard  pip install torch-tb-profiler; tensorboard --logdir {folder} --host 127.0.0.1",
        ]
    )


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _short(name: str) -> str:
    return name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 1] + "…"
