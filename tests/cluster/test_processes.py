"""One node's ranks as processes, without Ray."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.leftovers import Process, alive, end_all, tree_of
from cluster.output import LineTail
from cluster.processes import TICK_SECONDS, Launch, RankGroup, Report, usable_cores

RANK = str(Path(__file__).with_name("rank.py"))
pytestmark = pytest.mark.timeout(180)


def launch_of(tmp_path: Path, *command: str, **changes: object) -> Launch:
    launch = Launch(
        command=[sys.executable, *command],
        working_directory=str(tmp_path),
        environment={"GIVEN": "yes"},
        log_directory=str(tmp_path / "logs"),
        attempt=0,
        node="here",
        node_rank=1,
        ranks_per_node=2,
        gpus=0,
        world_size=4,
        master_address="10.0.0.1",
        master_port=20001,
        heartbeat_seconds=30.0,
        start_seconds=30.0,
    )
    return replace(launch, **changes)  # type: ignore[arg-type]


def until(group: RankGroup, condition: Callable[[Report], bool]) -> tuple[Report, list[str]]:
    output: list[str] = []
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        report = group.report(1.0)
        output += report.output
        if condition(report):
            return report, output
    raise AssertionError(f"not in time: {report}")


def gone(pid: int, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_ranks_get_their_coordinates_and_nothing_of_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "77")  # what Ray sets in a worker is not the user's wish
    group = RankGroup(launch_of(tmp_path, RANK, "tell"), tmp_path / "beats")
    group.start()
    report, _ = until(group, lambda report: report.done)
    assert [state.exit_code for state in report.states] == [0, 0]
    log = (tmp_path / "logs" / "rank-00003.log").read_text().splitlines()
    assert log[0].startswith("===== attempt 0, ") and log[0].endswith("rank 3 of 4, node here")
    assert json.loads(log[1]) == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2",
        "NODE_RANK": "1",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "20001",
        "TRESTLE_ATTEMPT": "0",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(max(1, usable_cores() // 2)),
        "GIVEN": "yes",
        "ray": [],
    }


def test_rank_0_is_heard_to_its_last_unfinished_line_and_logs_are_kept_across_attempts(tmp_path: Path) -> None:
    for attempt in (0, 1):
        launch = launch_of(tmp_path, RANK, "tell", node_rank=0, ranks_per_node=1, world_size=1, attempt=attempt)
        group = RankGroup(launch, tmp_path / "beats")
        group.start()
        _, output = until(group, lambda report: report.done)
        assert json.loads(output[0])["TRESTLE_ATTEMPT"] == str(attempt)
        assert output[1:] == ["unfinished line"]
    log = (tmp_path / "logs" / "rank-00000.log").read_text()
    assert "===== attempt 0, " in log and "===== attempt 1, " in log


def test_output_that_nobody_reads_does_not_block_the_rank(tmp_path: Path) -> None:
    command = "import sys; sys.stdout.write(('x' * 99 + chr(10)) * 50_000)"
    launch = launch_of(tmp_path, "-c", command, node_rank=0, ranks_per_node=1, world_size=1)
    group = RankGroup(launch, tmp_path / "beats")
    pid = group.start()[0]
    assert gone(pid)
    _, output = until(group, lambda report: report.done)
    assert output == ["x" * 99] * 50_000


def test_a_reader_that_falls_far_behind_skips_and_says_so(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"line\n" * (LineTail.FARTHEST // 5 + 1000))
    tail = LineTail(log, 0)
    lines = tail.read(final=True)
    assert "bytes not shown; they are in" in lines[0] and len(lines) < LineTail.CHUNK
    assert tail.read(final=True) == []
    tail.close()


def test_stop_ends_a_stopped_rank_and_the_children_of_ranks(tmp_path: Path) -> None:
    child = "import subprocess, os, signal; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); "
    stopped = child + "os.kill(os.getpid(), signal.SIGSTOP)"
    launch = launch_of(tmp_path, "-c", stopped, node_rank=0, ranks_per_node=1, world_size=1)
    group = RankGroup(launch, tmp_path / "beats")
    pid = group.start()[0]
    _, output = until(group, lambda report: report.states[0].process_state == "T")
    while not output:
        output += group.report(1.0).output
    grandchild = int(output[0])
    assert not gone(grandchild, 0.1)
    started = time.monotonic()
    group.stop(0.3)
    assert time.monotonic() - started >= 0.3
    assert group.states()[0].exit_code == -signal.SIGKILL
    assert gone(pid) and gone(grandchild)


def test_silence_is_told_with_the_state_of_the_process(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, RANK, "stop-once", node_rank=0, world_size=2, heartbeat_seconds=1.0)
    group = RankGroup(launch, tmp_path / "beats")
    group.start()
    report, _ = until(group, lambda report: all(state.stale for state in report.states))
    assert [state.process_state for state in report.states] == ["S", "T"]
    assert [state.step for state in report.states] == [0, 0]
    group.stop(0.0)


def test_a_rank_without_any_heartbeat_has_its_own_limit(tmp_path: Path) -> None:
    command = "import time; time.sleep(600)"
    launch = launch_of(tmp_path, "-c", command, ranks_per_node=1, heartbeat_seconds=600.0, start_seconds=0.3)
    group = RankGroup(launch, tmp_path / "beats")
    group.start()
    report, _ = until(group, lambda report: report.states[0].stale)
    assert report.states[0].step is None
    group.stop(0.0)


def test_a_log_that_takes_no_header_does_not_keep_a_rank_from_starting(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank-00001.log").symlink_to("/dev/full")
    group = RankGroup(launch_of(tmp_path, "-c", "pass", ranks_per_node=1), tmp_path / "beats")
    group.start()
    report, _ = until(group, lambda report: report.done)
    assert report.states[0].exit_code == 0


def test_a_log_that_cannot_be_read_for_a_while_does_no_harm_to_the_ranks(tmp_path: Path) -> None:
    words = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\nprint('here again')"
    launch = launch_of(tmp_path, "-c", words, node_rank=0, ranks_per_node=1, world_size=1)
    group = RankGroup(launch, tmp_path / "beats")
    group.start()
    assert group._tail is not None
    number = group._tail._file.fileno()
    log = os.dup(number)
    directory = os.open("/", os.O_RDONLY)
    os.dup2(directory, number)  # every read fails
    time.sleep(5 * TICK_SECONDS)
    assert group.report(0.0).states[0].exit_code is None
    os.dup2(log, number)
    (tmp_path / "go").touch()
    report, output = until(group, lambda report: report.done)
    assert report.states[0].exit_code == 0 and output == ["here again"]
    os.close(log)
    os.close(directory)


def test_ranks_die_with_the_process_that_started_them(tmp_path: Path) -> None:
    # What is unpickled is what this very test pickled, for the child that it starts.
    script = (
        "import sys, pickle, time; from pathlib import Path; from cluster.processes import RankGroup\n"
        "group = RankGroup(pickle.loads(bytes.fromhex(sys.argv[1])), Path(sys.argv[2]))\n"
        "print(*group.start(), flush=True); time.sleep(600)"
    )
    launch = launch_of(tmp_path, RANK, "ignore-term")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script, pickle.dumps(launch).hex(), str(tmp_path / "beats")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as agent:
        assert agent.stdout is not None
        pids = [int(pid) for pid in agent.stdout.readline().split()]
        assert len(pids) == 2 and not any(gone(pid, 0.1) for pid in pids)
        agent.kill()
        assert all(gone(pid) for pid in pids)


def test_a_whole_process_tree_is_found_by_a_word_and_ended() -> None:
    script = "import subprocess, sys; subprocess.run(['sleep', '611'])  # word-7261"
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        found: set[Process] = set()
        deadline = time.monotonic() + 60
        while len(found) < 2 and time.monotonic() < deadline:
            found = tree_of("word-7261")
        assert len(found) == 2 and parent.pid in {process.pid for process in found}
        end_all(found, time.monotonic())
        assert not any(alive(process) for process in found)
        assert tree_of("word-7261") == set()
