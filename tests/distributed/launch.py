"""Run a function on several real processes over gloo, each with a deadline; nothing is left behind."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PORTS = range(20000, 30000)
"""Below what Linux hands to outgoing connections (32768 up), which would take a port between the choice and its use."""


def free_port() -> int:
    """A TCP port that nothing listens on."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise AssertionError(f"no free port from {PORTS.start} to {PORTS.stop - 1}")


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def run(function: str, world_size: int, argument: Any, *, deadline: float) -> list[Any]:
    """Call `module:name` with `argument` (JSON) on `world_size` processes; their return values (JSON) in rank order.

    Raises AssertionError with the failing rank's output when one fails or the deadline (seconds) passes.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="trestle-test-") as folder:
        (Path(folder) / "argument.json").write_text(json.dumps(argument))
        logs = [open(Path(folder) / f"log-{rank}", "w+") for rank in range(world_size)]  # noqa: SIM115
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.distributed.launch", function, folder],
                env=rank_environment(rank, world_size, port),
                stdout=logs[rank],
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for rank in range(world_size)
        ]
        try:
            failed = _wait(ranks, time.monotonic() + deadline)
            if failed is not None:
                output = (Path(folder) / f"log-{failed}").read_text()
                raise AssertionError(
                    f"rank {failed} of {function} failed or ran past {deadline:.0f} s:\n{output[-6000:]}"
                )
            return [json.loads((Path(folder) / f"result-{rank}.json").read_text()) for rank in range(world_size)]
        finally:
            for process in ranks:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for log in logs:
                log.close()


def _wait(ranks: list[subprocess.Popen[Any]], deadline: float) -> int | None:
    """The first rank that failed, or, past the deadline, the first still running; None when all are done."""
    while any(process.poll() is None for process in ranks):
        for rank, process in enumerate(ranks):
            if process.returncode not in (None, 0):
                return rank
        if time.monotonic() > deadline:
            return next(rank for rank, process in enumerate(ranks) if process.returncode is None)
        time.sleep(0.05)  # polling several children at once: there is no event that covers them all
    return next((rank for rank, process in enumerate(ranks) if process.returncode), None)


def _main() -> None:
    function, folder = sys.argv[1], Path(sys.argv[2])
    module, name = function.split(":")
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    result = getattr(importlib.import_module(module), name)(json.loads((folder / "argument.json").read_text()))
    rank = torch.distributed.get_rank()
    (folder / f"result-{rank}.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _main()
