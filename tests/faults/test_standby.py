"""A rank is killed while a standby is ready, another one right after: both times the ranks are
forked from the standby, and the run ends as if nothing had happened.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.conftest import STEPS
from tests.faults.run_files import RunFiles, assert_same_run
from tests.faults.running import TRESTLE, started


@pytest.fixture(scope="module")
def disturbed(workplace: Path) -> RunFiles:
    """One run under Ray in which ranks are killed twice and the standby once."""
    command = [*TRESTLE, "train", "recipe.yaml", "--run.name", "standby", "--cluster.standby", "true"]
    command += ["--cluster.heartbeat_seconds", "600"]  # the ranks stand still until a nicer process has imported
    with started(command, workplace, workplace / "runs" / "standby", deadline=600) as run:
        run.wait_for_step(10)
        ranks = run.wait_for_ranks(2)
        for pid in ranks.values():
            os.kill(pid, signal.SIGSTOP)  # what is left of the run is too short for imports beside it
        standby = run.wait_for_standby()
        os.kill(ranks[1], signal.SIGKILL)
        run.wait_for_event("restarted", 1)
        run.wait_for_step(30)
        os.kill(run.wait_for_ranks(2)[0], signal.SIGKILL)
        run.wait_for_event("restarted", 2)
        run.wait_for_step(50)
        assert run.wait_for_standby() == standby
        os.kill(standby, signal.SIGKILL)
        run.end(0)
    return run.files


@pytest.mark.timeout(900)
def test_ranks_forked_from_a_standby_train_as_any_others(disturbed: RunFiles, undisturbed: RunFiles) -> None:
    assert_same_run(disturbed, undisturbed)
    assert disturbed.events("finished")[0]["step"] == STEPS


def test_restarts_tell_how_many_ranks_were_warm(disturbed: RunFiles) -> None:
    assert [e["warm"] for e in disturbed.events("restarted")] == [2, 2]
    assert [e["rank"] for e in disturbed.events("failed")] == [1, 0]
    assert len(disturbed.events("resumed")) == 2


def test_a_standby_that_is_killed_does_not_disturb_the_run(disturbed: RunFiles) -> None:
    assert disturbed.events("no_standby")[0]["reason"].startswith("the standby was killed by SIGKILL")
