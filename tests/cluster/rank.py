"""A rank of few lines for the tests of `cluster`: `python rank.py BEHAVIOUR`, standard library only."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

RANK = int(os.environ["RANK"])
ATTEMPT = int(os.environ["TRESTLE_ATTEMPT"])
NAMES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("TRESTLE_ATTEMPT", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "GIVEN"),
)


def beat(step: int) -> None:
    """Report progress as a rank should: atomically."""
    path = Path(os.environ["TRESTLE_HEARTBEAT"])
    path.with_suffix(".new").write_text(str(step))
    path.with_suffix(".new").replace(path)


def wait_for_ever() -> None:
    """Beat until something ends this process."""
    step = 0
    while True:
        beat(step)
        step += 1
        time.sleep(0.05)  # the length of a step; whoever waits for this process ends it


def wait_for_log_of_rank(rank: int, word: str) -> None:
    """Beat until another rank has printed `word`, however late it was started."""
    log = Path(os.readlink("/proc/self/fd/1")).with_name(f"rank-{rank:05d}.log")
    while not (log.exists() and word in log.read_text()):
        beat(0)
        time.sleep(0.05)  # a file of another process


def behave(behaviour: str) -> None:
    """Do what the test asked for; returning means exit code 0."""
    if behaviour == "fail-when-first-grown" and ATTEMPT == 2:
        sys.exit(3)
    if behaviour == "refuse-after-success" and ATTEMPT == 2:
        sys.exit(2)
    beat(0)
    if behaviour in ("tell", "tell-and-wait"):
        told = {name: os.environ.get(name) for name in NAMES}
        told["ray"] = sorted(name for name in os.environ if name.startswith("RAY_"))
        print(json.dumps(told), flush=True)
        sys.stdout.write("unfinished line")
        if behaviour == "tell-and-wait":
            sys.stdout.flush()
            wait_for_ever()
    elif behaviour == "with-child":
        print("child", subprocess.Popen(["sleep", "600"]).pid, flush=True)
        wait_for_ever()
    elif behaviour == "die-once":
        if ATTEMPT == 0 and RANK == 1:
            print("dying", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if ATTEMPT == 0:
            wait_for_ever()
        print(f"finished in attempt {ATTEMPT}", flush=True)
    elif behaviour == "stop-once":
        if ATTEMPT == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as one that waits in a collective
            print("hangs", flush=True)
            if RANK == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            wait_for_log_of_rank(1, "hangs")
            time.sleep(600)  # hangs until it is killed: that is what is tested
    elif behaviour == "fail":
        sys.exit(3)
    elif behaviour == "progress-then-fail":
        beat(ATTEMPT)
        if ATTEMPT < 3:
            sys.exit(3)
    elif behaviour == "refuse":
        if RANK == 1:
            sys.exit(2)
        wait_for_ever()
    elif behaviour == "leave":
        sys.exit(75)
    elif behaviour == "save-on-term":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        print(f"ready {os.getpid()}", flush=True)
        wait_for_ever()
    elif behaviour == "fail-when-first-grown":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        if ATTEMPT < 2 or os.environ["WORLD_SIZE"] == "1":
            wait_for_ever()
    elif behaviour == "leave-for-a-node":
        if ATTEMPT == 0:
            if RANK == 1:  # as one that got SIGTERM; its peer stops after the same step
                Path(os.environ["TRESTLE_HEARTBEAT"]).write_text("1\nasked to stop\n")
            sys.exit(75)
    elif behaviour == "save-once":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        if ATTEMPT == 0:
            wait_for_ever()
    elif behaviour == "refuse-after-success":
        if ATTEMPT == 0:
            sys.exit(3)
    elif behaviour == "fail-twice":
        if ATTEMPT < 2:
            sys.exit(3)
    elif behaviour == "ignore-term":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(f"ready {os.getpid()}", flush=True)
        wait_for_ever()
    elif behaviour == "wait-once":
        print("heartbeat", os.environ["TRESTLE_HEARTBEAT"], flush=True)
        if ATTEMPT == 0:
            wait_for_ever()
    else:
        raise ValueError(behaviour)


if __name__ == "__main__":
    behave(sys.argv[1])
