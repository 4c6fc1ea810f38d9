"""Jobs for placements, without files."""

from __future__ import annotations

from typing import Any

from launcher import job
from launcher.dry_run import check_anywhere


def job_of(document: dict[str, Any], *, nodes: int, ranks_per_node: int) -> job.Job:
    """The checked job of a recipe's plain values, on nodes that need not exist."""
    made = job.job_of({**document, "cluster": {"nodes": nodes, "ranks_per_node": ranks_per_node}})
    check_anywhere(made)
    return made
