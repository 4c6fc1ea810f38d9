"""Run a function on several real processes over gloo, with a deadline; nothing is left behind."""

from __future__ import annotations

import importlib
import json
import os
import random
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.distributed.forks import Launch, Server

PORTS = range(20000, 30000)
"""Below what Linux hands to outgoing connections (32768 up), which would take a port between the choice and its use."""


_servers: list[Server] = []
"""The one that forks the ranks, from the first launch on."""


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


def run(function: str, world_size: int, argument: Any, *, deadline: float, fresh: bool = False) -> list[Any]:
    """Call `module:name` with `argument` (JSON) on `world_size` processes; their return values (JSON) in rank order.

    The processes have imported what a rank imports, unless they are to be `fresh`: then each has hashes of its own,
    so that ranks that send in the order of a set disagree (see `forks`).

    Raises AssertionError with the failing rank's output when one fails or the deadline (seconds) passes.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="trestle-test-") as folder:
        (Path(folder) / "argument.json").write_text(json.dumps(argument))
        environments = [rank_environment(rank, world_size, port) for rank in range(world_size)]
        if fresh:
            environments = [one | {"PYTHONHASHSEED": str(rank + 1)} for rank, one in enumerate(environments)]
        failed = _launch(Launch(function, folder, environments, deadline, os.getcwd(), fresh))
        if failed is not None:
            output = (Path(folder) / f"log-{failed}").read_text()
            raise AssertionError(f"rank {failed} of {function} failed or ran past {deadline:.0f} s:\n{output[-6000:]}")
        return [json.loads((Path(folder) / f"result-{rank}.json").read_text()) for rank in range(world_size)]


def _launch(launch: Launch) -> int | None:
    if not _servers:
        _servers.append(Server())
    try:
        return _servers[0].run(launch)
    except BaseException:  # a test that is interrupted must not leave ranks behind
        _servers.pop().close()
        raise


def work(function: str, folder: Path) -> None:
    """One rank: call the function, and leave what it returns in the folder."""
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
    work(sys.argv[1], Path(sys.argv[2]))
