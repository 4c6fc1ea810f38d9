"""What ranks do with each other: the sum of a buffer over them, checked and timed.

As a program (`python -m launcher.doctor.ranks BACKEND RANK WORLD FILE`) it is one of these ranks; FILE is where they
meet, so that no port is needed.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta

from launcher.doctor.findings import Finding, Status

SECTION = "between ranks"
BYTES = {"gloo": 32 * 2**20, "nccl": 512 * 2**20}
SLOW = {"gloo": 50e6, "nccl": 2e9}  # bytes a second: below, something is wrong with how they reach each other
TIMES = 3


def work(backend: str, rank: int, world: int, meeting: str) -> dict[str, float | bool]:
    """As one rank: whether the sum is right, and the bandwidth (algorithm bytes over time, the best of TIMES)."""
    import torch
    import torch.distributed as dist

    device = "cpu"
    if backend == "nccl":
        device = f"cuda:{rank}"
        torch.cuda.set_device(rank)
    store = dist.FileStore(meeting, world)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=20))
    best, right = float("inf"), True
    for _ in range(TIMES):
        buffer = torch.full((BYTES[backend] // 4,), float(rank + 1), device=device)
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(buffer)
        right = bool((buffer == world * (world + 1) / 2).all())
        best = min(best, time.perf_counter() - started)
    dist.destroy_process_group()
    return {"right": right, "bytes_per_second": BYTES[backend] / best}


def finding_of(backend: str, told: list[dict[str, float | bool]]) -> Finding:
    """The line of the screen."""
    slowest = min(float(one["bytes_per_second"]) for one in told)
    text = f"all_reduce over {len(told)} ranks {slowest / 1e9:.2f} GB/s"
    if not all(one["right"] for one in told):
        return Finding(SECTION, backend, Status.FAIL, f"{text}; WRONG SUMS", MENDS[backend])
    if slowest < SLOW[backend]:
        return Finding(SECTION, backend, Status.WARN, f"{text}, which is slow", MENDS[backend])
    return Finding(SECTION, backend, Status.OK, text)


MENDS = {
    "gloo": "see that the machine's own name leads to an address of its own, or set GLOO_SOCKET_IFNAME=lo",
    "nccl": "run once with NCCL_DEBUG=INFO; try NCCL_P2P_DISABLE=1 and NCCL_SOCKET_IFNAME",
}


if __name__ == "__main__":
    print(json.dumps(work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])), flush=True)
