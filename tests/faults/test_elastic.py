"""A training that loses one of two nodes, goes on with the other, takes in the one that comes back, and leaves it."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.distributed.key_biases import depended_on
from tests.distributed.launch import free_port
from tests.faults.machines import HEAD, machines
from tests.faults.run_files import RunFiles
from tests.faults.running import TORCHRUN, TRESTLE, Program, started

STEPS = 160
"""So many that the run on one node does not end while its process is being stopped."""
NODES = ("127.0.0.3", "127.0.0.4")
CHANGES = ["--training.precision=fp32", f"--training.steps={STEPS}", "--optimizer.lr=1e-3", "--checkpoint.every=8"]
PLACE = ["--cluster.nodes=2", "--cluster.ranks_per_node=1", f"--cluster.node_address={HEAD}"]
PATIENCE = [
    "--cluster.standby=false",
    "--cluster.node_return_seconds=0.5",
    "--cluster.grow_seconds=1",
    "--cluster.heartbeat_seconds=90",
]

WEIGHTS_AGREE = 1e-5
"""How far weights may be apart after the last step. Where the exact gradient is zero, the sums of another layout differ
by up to 6e-11; Adam divides by the running size of the gradient, of which the least is 2e-6: 3e-5 of the learning rate
1e-3 a step, 5e-6 if all 160 steps went one way. Measured between one rank and two: 6e-8, an ulp of 1.0 in norms.
"""


@pytest.fixture(scope="module")
def undisturbed_fp32(workplace: Path) -> RunFiles:
    """Two data-parallel ranks from the first step to the last."""
    ranks = ["--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    command = [*TORCHRUN, *ranks, "-m", "training.worker", "recipe.yaml", "--run.name", "both", *CHANGES]
    with started(command, workplace, workplace / "runs" / "both", deadline=240) as run:
        run.end(0)
    return run.files


@pytest.fixture(scope="module")
def elastic(workplace: Path) -> RunFiles:
    """Two nodes, one, two again, and one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_health_check_period_ms", "500")  # 3000 by default: a dead node is missed after five of them
        with machines(NODES) as ray:
            settings = [*CHANGES, *PLACE, *PATIENCE, f"--cluster.address={ray.address}"]
            command = [*TRESTLE, "train", "recipe.yaml", "--run.name", "elastic", *settings]
            with started(command, workplace, workplace / "runs" / "elastic", deadline=600) as run:
                run.wait_for_step(10)
                ray.kill(NODES[1])
                alone = next_rank(run, rank=0, restarts=1)
                os.kill(alone, signal.SIGSTOP)  # so that it does not finish before the node is there
                ray.add(NODES[1])
                run.wait_for(lambda: asked_to_save(alone), "request to save, for the sake of the node")
                os.kill(alone, signal.SIGCONT)
                os.kill(next_rank(run, rank=1, restarts=2), signal.SIGTERM)  # as a notice to its node would
                run.end(0)
    return run.files


def next_rank(run: Program, rank: int, restarts: int) -> int:
    """The process of a rank after so many restarts, once it has made a step."""
    run.wait_for_event("restarted", restarts)
    log = run.files.path / "logs" / f"rank-{rank:05d}.log"
    found: list[int] = []

    def look() -> bool:
        found[:] = [int(pid.name) for pid in Path("/proc").glob("[0-9]*") if output_of(pid) == str(log)]
        return bool(found)

    run.wait_for(look, f"process of rank {rank}")
    run.wait_for_event("resumed", restarts)
    before = run.files.last_step()
    run.wait_for(lambda: run.files.last_step() != before, "step after the restart")
    return found[0]


def output_of(process: Path) -> str:
    with suppress(OSError):
        return os.readlink(process / "fd" / "1")
    return ""


def asked_to_save(pid: int) -> bool:
    """Whether SIGTERM waits for a stopped process."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    pending = next(int(line.split()[1], 16) for line in status if line.startswith("ShdPnd:"))
    return bool(pending >> (signal.SIGTERM - 1) & 1)


@pytest.mark.timeout(900)
def test_losses_and_weights_are_those_of_the_undisturbed_run(elastic: RunFiles, undisturbed_fp32: RunFiles) -> None:
    lines, others = elastic.figures(), undisturbed_fp32.figures()
    assert [line["step"] for line in lines] == [line["step"] for line in others] == list(range(1, STEPS + 1))
    for line, other in zip(lines, others, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4), f"step {line['step']}"
        assert line["samples"] == other["samples"] and line["batch_size"] == other["batch_size"]
    mine, theirs = elastic.newest(), undisturbed_fp32.newest()
    assert mine.step == theirs.step == STEPS
    for name in theirs.names():
        found, wanted = mine.tensor(name, "weight"), theirs.tensor(name, "weight")
        if (counts := depended_on(name, heads=4, groups=4, head_size=8)) is not None:
            # What is left out are indeed entries of no gradient, beside the least of the others'.
            sizes = theirs.tensor(name, "exp_avg_sq").sqrt()
            assert sizes[~counts].max() < 1e-3 * sizes[counts].min(), name
            found, wanted = found[counts], wanted[counts]
        torch.testing.assert_close(found, wanted, rtol=0, atol=WEIGHTS_AGREE, msg=f"{name}: {{}}".format)


def test_events_tell_the_story(elastic: RunFiles) -> None:
    told = [e for e in elastic.events() if e["event"] not in ("checkpointed", "resumed")]
    again = ["resized", "restarted"]
    assert [e["event"] for e in told] == ["started", "failed", *again, *again, "leaving", *again, "finished"]
    assert NODES[1] in told[1]["reason"] and told[6]["nodes"] == [NODES[1]]
    sizes = [(e["from"], e["to"], e["ranks"]) for e in told if e["event"] == "resized"]
    assert sizes == [(2, 1, 1), (1, 2, 2), (2, 1, 1)]
    assert len(elastic.events("resumed")) == 3 and len(elastic.events("failed")) == 1
