"""`trestle jobs`: what has been submitted to a cluster, and how far it is."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster.jobs import ClusterJob
from launcher.arguments import Parser
from launcher.head import add_head, jobs_of
from launcher.run_folder import RunFolder
from launcher.tables import table


def parser() -> Parser:
    made = Parser(
        "jobs",
        "List the jobs that were submitted to a cluster, oldest first: pending, running, finished, saved (stopped\n"
        "after a checkpoint), refused (a mistake in its input), failed, killed, stopped (without saving).\n"
        "Step and loss are read from the run's folder where it can be seen from here.",
        "  trestle jobs\n  trestle jobs --json --address http://127.0.0.1:8265",
    )
    made.add_argument("--json", action="store_true", help="one JSON object a line, for scripts; times in Unix seconds")
    add_head(made)
    return made


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    jobs = jobs_of(arguments)
    lines = [_facts(jobs.find(job.name) if job.over else job) for job in jobs.list()]
    if arguments.json:
        for line in lines:
            print(json.dumps(line))
        return 0
    if not lines:
        print(f"{jobs.address} has no jobs of Trestle's: `trestle submit RECIPE` starts one")
        return 0
    headings = ("name", "status", "step", "loss", "started", "duration", "nodes", "commit")
    print(table(headings, [_row(line) for line in lines]))
    return 0


def _facts(job: ClusterJob) -> dict[str, Any]:
    figures = _figures(job.metadata.get("folder", ""))
    return {
        "name": job.name,
        "run": job.run,
        "status": job.status,
        "exit_code": job.exit_code,
        "step": figures.get("step"),
        "loss": figures.get("loss"),
        "started": job.started,
        "ended": job.ended,
        "nodes": int(job.metadata.get("nodes", 0)) or None,
        "folder": job.metadata.get("folder"),
        "commit": job.metadata.get("commit"),
        "uncommitted": job.metadata.get("uncommitted", ""),
    }


def _figures(folder: str) -> dict[str, Any]:
    try:
        return RunFolder(Path(folder)).last_figures() if folder else {}
    except OSError:
        return {}


def _row(facts: dict[str, Any]) -> tuple[object, ...]:
    started, ended = facts["started"], facts["ended"]
    commit = (facts["commit"] or "-")[:12] + ("+" if facts["uncommitted"] else "")
    return (
        facts["name"],
        facts["status"],
        facts["step"],
        facts["loss"],
        None if started is None else datetime.fromtimestamp(started).strftime("%Y-%m-%d %H:%M:%S"),
        None if started is None else _duration((ended or time.time()) - started),
        facts["nodes"],
        commit,
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
