"""Run a short command once on every node of a running cluster, and compare the nodes' clocks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cluster.children import DIE_WITH_PARENT
from cluster.config import ClusterConfig
from cluster.placement import address_order
from cluster.processes import usable_cores
from cluster.session import open_session

ANSWER_SECONDS = 30.0
"""For Ray to start a worker, on top of the command's own time."""


@dataclass(frozen=True)
class Answer:
    """What came of the command on a node."""

    node: str
    output: str  # of stdout
    problem: str | None  # why there is no output; None: there is
    clock_seconds: float | None  # how far the node's clock is ahead of this machine's, give or take the answer's way


def on_every_node(words: Sequence[str], config: ClusterConfig, seconds: float) -> list[Answer]:
    """`python WORDS…` on each living node of `config.address`, in order of address, at the same time.

    It may take `seconds`, then it is killed with its children. Every node needs this code at the same place, as for
    ranks. Raises `ClusterError` where the cluster cannot be joined.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with open_session(config, usable_cores(), on_close=lambda: None):
        remote: Any = ray.remote(_run)
        clock: Any = ray.remote(_clock)
        nodes = sorted((n for n in ray.nodes() if n["Alive"]), key=lambda n: address_order(n["NodeManagerAddress"]))
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        asked = [
            remote.options(num_cpus=0, max_retries=0, scheduling_strategy=place).remote(
                list(words), os.getcwd(), seconds
            )
            for place in places
        ]
        ray.wait(asked, num_returns=len(asked), timeout=seconds + ANSWER_SECONDS)
        answers = []
        for node, place, reference in zip(nodes, places, asked, strict=True):
            output, problem, ahead = "", "the node has not answered in time", None
            try:
                output, problem = ray.get(reference, timeout=0)
                before = time.time()
                there = ray.get(clock.options(num_cpus=0, scheduling_strategy=place).remote(), timeout=ANSWER_SECONDS)
                ahead = there - (before + time.time()) / 2
            except (ray.exceptions.RayError, TimeoutError) as error:
                problem = problem or " ".join(str(error).split())[:300]
            answers.append(Answer(node["NodeManagerAddress"], output, problem, ahead))
        return answers


def _clock() -> float:
    return time.time()


def _run(words: list[str], working_directory: str, seconds: float) -> tuple[str, str | None]:
    """As a Ray task: (stdout, why there is none)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):  # Ray's idea of what a task without resources may use
        environment.pop(name, None)
    command = [sys.executable, "-I", "-S", str(DIE_WITH_PARENT), str(os.getpid()), sys.executable, *words]
    process = subprocess.Popen(
        command,
        cwd=working_directory if os.path.isdir(working_directory) else None,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return "", f"it had not finished after {seconds:g} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    if output.strip():
        return output, None
    lines = errors.strip().splitlines()
    return "", lines[-1][:300] if lines else f"exit code {process.returncode}, and no output"
