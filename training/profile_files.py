"""What lies in the folder of a profile, for the command that asks for it and the ranks that make it. No torch."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

REQUEST = "request.json"
RECIPE = "profiled.yaml"
"""Not recipe.yaml: a folder with one is a run's."""


@dataclass(frozen=True)
class Request:
    """What is to be recorded of which run."""

    run: str
    """The run's folder, absolute."""
    steps: int
    """Recorded steps."""
    warmup: int
    """Steps made before, at least one."""
    ranks: list[int]
    """Ranks that record."""
    shapes: bool = False
    stacks: bool = False
    memory: bool = False

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Request:
        return cls(**json.loads(path.read_text()))


def trace_file(rank: int) -> str:
    """A trace's name: TensorBoard's profiler plugin finds `WORKER.pt.trace.json.gz`, and takes a worker NODE_NUMBER for
    the process NUMBER of NODE (torch_tb_profiler, consts.py).
    """
    node = os.environ.get("TRESTLE_NODE") or socket.gethostname()
    return f"{node}_{rank}.pt.trace.json.gz"


def summary_file(rank: int) -> str:
    return f"rank-{rank:05d}.json"
