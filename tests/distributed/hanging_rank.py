"""A rank on gloo that gets stuck: `python hanging_rank.py HOW`; whoever starts it has to end it."""

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

from training import stacks

stacks.listen(os.environ)

import torch
import torch.distributed as dist

RANK = int(os.environ["RANK"])


def sleep_as_if_reading_data() -> None:
    """What the report has to name."""
    time.sleep(600)


def hang(how: str) -> None:
    """Rank 0 waits for rank 1 in an all_reduce or a recv; what rank 1 does instead is `how`."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=600))
    pair = dist.new_group([0, 1], group_desc="PAIR")
    for _ in range(3):
        dist.all_reduce(torch.ones(4))
    heartbeat = Path(os.environ["TRESTLE_HEARTBEAT"])
    heartbeat.with_name(f"{heartbeat.name}.new").write_text("7\n")
    heartbeat.with_name(f"{heartbeat.name}.new").replace(heartbeat)
    if RANK == 1 and how == "sleep":
        dist.all_reduce(torch.ones(4), group=pair, async_op=True)  # which goes on in the background meanwhile
        sleep_as_if_reading_data()
    elif RANK == 1 and how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif RANK == 1 and how == "other":
        dist.all_reduce(torch.ones(4), group=pair)
    elif how == "other":
        dist.recv(torch.ones(4), 1)
    dist.all_reduce(torch.ones(4))


if __name__ == "__main__":
    hang(sys.argv[1])
