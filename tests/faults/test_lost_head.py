"""Ray's head dies: the run saves, ends in order, and goes on from its folder alone, under another Ray."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.faults.machines import machines
from tests.faults.running import TRESTLE, started

NODES = ("127.0.0.3", "127.0.0.4")
PATIENCE = 20.0
"""Seconds, also for the agents to start the ranks in."""
RAYS_OWN = "600"
"""Seconds that Ray's nodes outlive their head, 60 by default: so many that only Trestle can end the run in time."""
LONG = "100000"  # steps: the run does not end by itself


@pytest.mark.timeout(900)
def test_run_whose_head_died_saves_ends_and_is_resumed_without_it(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", RAYS_OWN)
    folder = workplace / "runs" / "headless"
    with machines(NODES) as ray:
        place = ["--cluster.nodes=2", "--cluster.ranks_per_node=1", f"--cluster.node_address={NODES[0]}"]
        settings = [*place, f"--cluster.address={ray.address}", f"--cluster.agent_seconds={PATIENCE}"]
        settings += ["--cluster.standby=false", f"--training.steps={LONG}", "--checkpoint.every=200"]
        with started(
            [*TRESTLE, "train", "recipe.yaml", "--run.name", "headless", *settings], workplace, folder, deadline=300
        ) as run:
            run.wait_for_step(10)
            address = ray.address
            ray.kill_head()
            died_at = time.monotonic()
            output = run.end(1)
            assert time.monotonic() - died_at < 250, "it must not wait for what Ray waits for"
    said = [line for line in output.splitlines() if line.startswith("trestle: gave up")]
    assert len(said) == 1 and f"the Ray head at {address} is gone; the ranks have saved; resume" in said[0]
    saved = run.files.newest().step
    assert saved == run.files.last_step()
    # Storage alone: a private Ray, one node of two ranks, and the step after the last one.
    again = ["--cluster.address=null", "--cluster.node_address=null", "--cluster.nodes=1", "--cluster.ranks_per_node=2"]
    again += ["--cluster.agent_seconds=30", f"--training.stop_after={saved + 5}"]
    with started([*TRESTLE, "resume", "runs/headless", *again], workplace, folder, deadline=300) as run:
        run.end(0)
    assert [e["step"] for e in run.files.events("resumed")] == [saved]
    assert [line["step"] for line in run.files.figures()] == list(range(1, saved + 6))
