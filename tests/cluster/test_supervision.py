"""Runs on two nodes: placed, watched, restarted, given up, ended."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import CommandNotFound, ImpossiblePlacement
from tests.cluster.conftest import NODES, Nodes, run_ranks

pytestmark = pytest.mark.timeout(300)


def test_ranks_are_numbered_by_node_and_rank_0_is_streamed(nodes: Nodes, tmp_path: Path) -> None:
    ran = run_ranks(nodes, tmp_path, "tell", nodes=2, ranks_per_node=2)
    assert ran.outcome.exit_code == 0 and ran.outcome.attempts == 1
    assert ran.names == ["started", "finished"]
    assert ran.events[0]["nodes"] == list(NODES) and ran.events[0]["ranks"] == 4
    assert datetime.fromisoformat(ran.events[0]["time"]).utcoffset() is not None
    told = [json.loads((ran.logs / f"rank-{rank:05d}.log").read_text().splitlines()[1]) for rank in range(4)]
    assert [(t["RANK"], t["LOCAL_RANK"], t["NODE_RANK"]) for t in told] == [
        ("0", "0", "0"),
        ("1", "1", "0"),
        ("2", "0", "1"),
        ("3", "1", "1"),
    ]
    assert {t["WORLD_SIZE"] for t in told} == {"4"} and {t["LOCAL_WORLD_SIZE"] for t in told} == {"2"}
    assert {t["MASTER_ADDR"] for t in told} == {NODES[0]} and len({t["MASTER_PORT"] for t in told}) == 1
    assert {t["GIVEN"] for t in told} == {"yes"} and all(t["ray"] == [] for t in told)
    assert json.loads(ran.output[0]) == told[0] and ran.output[1:] == ["unfinished line"]


def test_a_killed_rank_is_named_and_all_ranks_are_started_again(nodes: Nodes, tmp_path: Path) -> None:
    ran = run_ranks(nodes, tmp_path, "die-once", nodes=2)
    assert ran.outcome.exit_code == 0 and ran.outcome.attempts == 2
    assert ran.names == ["started", "failed", "restarted", "finished"]
    started, failed, restarted, _ = ran.events
    assert (failed["rank"], failed["node"], failed["signal"], failed["step"]) == (1, NODES[1], "SIGKILL", 0)
    assert restarted["attempt"] == 1 and restarted["seconds"] < 60
    assert restarted["master"] != started["master"]
    assert ran.output == ["finished in attempt 1"]
    log = (ran.logs / "rank-00001.log").read_text()
    assert log.index("attempt 0,") < log.index("dying") < log.index("attempt 1,") < log.index("finished in attempt 1")


def test_a_stopped_rank_is_found_within_its_deadline_and_named(nodes: Nodes, tmp_path: Path) -> None:
    ran = run_ranks(nodes, tmp_path, "stop-once", nodes=2, heartbeat_seconds=2.0, teardown_seconds=0.2)
    assert ran.outcome.exit_code == 0
    assert ran.names == ["started", "hang_report", "failed", "restarted", "finished"]
    report, failed = ran.events[1:3]
    assert (failed["rank"], failed["node"]) == (report["rank"], report["node"]) == (1, NODES[1])
    assert "rank 1 is stopped by a signal, at step 0" in failed["reason"]
    folder = Path(report["path"])
    assert folder.parent == ran.logs and folder.name.startswith("hang-0-") and "problem" not in report
    assert failed["reason"] in (folder / "report.txt").read_text()
    assert f"rank     1 on {NODES[1]}, process " in (folder / "rank-00001.txt").read_text()
    started_at, failed_at = (datetime.fromisoformat(ran.events[i]["time"]) for i in (0, 2))
    assert (failed_at - started_at).total_seconds() < 60.0
    silent = float(failed["reason"].removeprefix("no progress for ").split(" s")[0])
    assert 2.0 <= silent < 30.0, "not before its deadline, nor long after it"


def test_gives_up_after_restarts_without_progress(nodes: Nodes, tmp_path: Path) -> None:
    ran = run_ranks(nodes, tmp_path, "fail", max_restarts=2)
    assert ran.outcome.exit_code == 1 and ran.outcome.attempts == 3
    assert ran.names == ["started", "failed", "restarted", "failed", "restarted", "failed", "gave_up"]
    assert [event["exit_code"] for event in ran.events if event["event"] == "failed"] == [3, 3, 3]
    assert "rank 0 exited with code 3, after 2 restarts without progress; log: " in ran.outcome.reason
    assert "rank-00000.log" in ran.outcome.reason and "\n" not in ran.outcome.reason


def test_does_not_give_up_while_there_is_progress(nodes: Nodes, tmp_path: Path) -> None:
    ran = run_ranks(nodes, tmp_path, "progress-then-fail", max_restarts=1)
    assert ran.outcome.exit_code == 0 and ran.outcome.attempts == 4
    assert [event["step"] for event in ran.events if event["event"] == "failed"] == [0, 1, 2]


def test_a_user_mistake_is_not_tried_again(nodes: Nodes, tmp_path: Path) -> None:
    ran = run_ranks(nodes, tmp_path, "refuse", nodes=2)
    assert ran.outcome.exit_code == 2 and ran.outcome.attempts == 1
    assert ran.names == ["started", "failed"]
    assert (ran.events[1]["rank"], ran.events[1]["exit_code"]) == (1, 2)


def test_ranks_that_saved_and_left_are_preempted_not_restarted(nodes: Nodes, tmp_path: Path) -> None:
    ran = run_ranks(nodes, tmp_path, "leave", nodes=2)
    assert ran.outcome.exit_code == 75 and ran.outcome.attempts == 1
    assert ran.names == ["started", "preempted"] and ran.events[1]["saved"] is True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_lets_the_ranks_save(nodes: Nodes, tmp_path: Path, number: signal.Signals) -> None:
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def stop_when_ready() -> None:
        log = tmp_path / "logs" / "rank-00001.log"
        while not (log.exists() and "ready" in log.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop_when_ready, daemon=True).start()
    ran = run_ranks(nodes, tmp_path, "save-on-term", nodes=2)
    assert ran.outcome.exit_code == 75 and ran.outcome.attempts == 1
    assert ran.names == ["started", "preempted"]
    assert ran.events[1]["saved"] is True and ran.events[1]["signal"] == number.name
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


def test_ranks_that_do_not_save_in_time_are_killed_and_it_is_said(nodes: Nodes, tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "started":
            os.kill(os.getpid(), signal.SIGTERM)

    ran = run_ranks(nodes, tmp_path, "stop-once", stop, nodes=2, grace_seconds=2.0, teardown_seconds=0.2)
    assert ran.outcome.exit_code == 128 + signal.SIGTERM
    assert ran.names == ["started", "preempted"] and ran.events[1]["saved"] is False


def test_more_nodes_than_there_are_is_refused_with_what_each_offers(nodes: Nodes, tmp_path: Path) -> None:
    with pytest.raises(ImpossiblePlacement, match=r"needs 3 nodes") as raised:
        run_ranks(nodes, tmp_path, "tell", nodes=3, connect_seconds=1.0)
    assert raised.value.exit_code == 2
    assert all(f"{address}: 1 CPU" in str(raised.value) for address in NODES)


def test_a_program_that_does_not_exist_is_a_user_mistake(nodes: Nodes, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.executable", "/no/such/python")
    with pytest.raises(CommandNotFound, match="/no/such/python is not a program on node ") as raised:
        run_ranks(nodes, tmp_path, "tell")
    assert raised.value.exit_code == 2


def test_what_is_missing_on_a_node_after_others_have_worked_is_a_failure_of_that_node(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, logs = tmp_path / "python", tmp_path / "logs"
    program.symlink_to(sys.executable)
    monkeypatch.setattr("sys.executable", str(program))

    def take_away_and_give_back(event: dict[str, Any]) -> None:
        if event["event"] != "failed":
            return
        if event["attempt"] == 0:
            program.rename(tmp_path / "away")
        elif event["attempt"] == 1:
            (tmp_path / "away").rename(program)
        elif event["attempt"] == 2:
            logs.rename(tmp_path / "old")
            logs.touch()  # no directory can be made there
        else:
            logs.unlink()

    ran = run_ranks(nodes, tmp_path, "refuse-after-success", take_away_and_give_back, max_restarts=4)
    assert ran.outcome.exit_code == 0 and ran.outcome.attempts == 5
    assert ran.names == ["started", "failed", "failed", "restarted", "failed", "failed", "restarted", "finished"]
    failures = [event for event in ran.events if event["event"] == "failed"]
    assert [event["exit_code"] for event in failures] == [3, 2, 2, 1]
    assert "is not a program on node" in failures[1]["reason"] and failures[1]["node"] in NODES
    assert failures[2]["rank"] == 0
    assert "could not start its ranks" in failures[3]["reason"] and failures[3]["node"] in NODES


def test_a_stop_without_any_grace_before_the_first_report_ends_in_order(nodes: Nodes, tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "started":
            os.kill(os.getpid(), signal.SIGTERM)

    ran = run_ranks(nodes, tmp_path, "wait-once", stop, grace_seconds=0.0)
    assert ran.outcome.exit_code == 128 + signal.SIGTERM and ran.names == ["started", "preempted"]


def test_an_error_in_the_caller_leaves_no_rank_behind(nodes: Nodes, tmp_path: Path) -> None:
    def fail(event: dict[str, Any]) -> None:
        raise OSError("no space left for events")

    with pytest.raises(OSError, match="no space left"):
        run_ranks(nodes, tmp_path, "wait-once", fail, nodes=2)
    from cluster.leftovers import tree_of
    from tests.cluster.conftest import RANK

    assert not tree_of(str(RANK))


def test_a_lost_node_is_replaced_by_one_that_joins(nodes: Nodes, tmp_path: Path) -> None:
    def directories() -> set[Path]:
        """Of the agents' heartbeats, as the ranks were told."""
        words = " ".join(log.read_text() for log in (tmp_path / "logs").glob("rank-*.log")).split()
        return {Path(after).parents[1] for word, after in itertools.pairwise(words) if word == "heartbeat"}

    def lose_a_node(event: dict[str, Any]) -> None:
        if event["event"] == "started":
            deadline = time.monotonic() + 60
            while len(directories()) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)  # files of other processes
            nodes.kill(NODES[1])
        if event["event"] == "failed":
            nodes.add("127.0.0.5")

    ran = run_ranks(nodes, tmp_path, "wait-once", lose_a_node, nodes=2, agent_seconds=20.0, node_return_seconds=120.0)
    assert ran.outcome.exit_code == 0 and ran.outcome.attempts == 2
    assert ran.names == ["started", "failed", "restarted", "finished"]
    assert ran.events[1]["node"] == NODES[1] and "127.0.0.4" in ran.events[1]["reason"]
    assert ran.events[2]["nodes"] == [NODES[0], "127.0.0.5"]
    used = directories()
    assert len(used) >= 3 and all(path.name.startswith("trestle-") for path in used)
    deadline = time.monotonic() + 60
    while left := [path for path in used if path.exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_gpus_are_reserved_where_nodes_have_them(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add("127.0.0.6", gpus=2)  # a resource by name only: Ray counts what it is told
    nodes.cluster.wait_for_nodes(timeout=120)
    try:
        ran = run_ranks(nodes, tmp_path, "tell", ranks_per_node=2)
    finally:
        nodes.kill("127.0.0.6")
    assert ran.outcome.exit_code == 0
    assert ran.events[0]["nodes"] == ["127.0.0.6"] and ran.events[0]["gpus_per_node"] == 2
    told = [json.loads((ran.logs / f"rank-{rank:05d}.log").read_text().splitlines()[1]) for rank in range(2)]
    assert [(t["LOCAL_RANK"], t["CUDA_VISIBLE_DEVICES"]) for t in told] == [("0", "0,1"), ("1", "0,1")]
