"""A node's standby: ranks that are forked from it are like others, and whatever happens to it does no harm."""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import standby as standby_module
from cluster.agent import Agent
from cluster.leftovers import tree_of
from cluster.memory import available_memory, memory_of
from cluster.processes import Launch, Report
from tests.cluster.test_processes import gone, launch_of
from training.standby import NAME

RANK = str(Path(__file__).with_name("standby_rank.py"))
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(autouse=True)
def no_orphans_for_later_tests() -> Iterator[None]:
    yield
    ctypes.CDLL(None).prctl(standby_module.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    assert not tree_of(RANK), "a process was left behind"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On busy cores nothing takes the standby for one that hangs."""
    monkeypatch.setattr(standby_module, "PATIENCE_SECONDS", 60.0)
    monkeypatch.setattr(standby_module, "ANSWER_SECONDS", 60.0)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(str(tmp_path / "scratch"))
    yield agent
    agent.close()


def launch(tmp_path: Path, *words: str, attempt: int = 0, **changes: Any) -> Launch:
    changes = {"node_rank": 0, "world_size": 2, "standby": True, **changes}
    return launch_of(tmp_path, RANK, *words, attempt=attempt, **changes)


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)  # processes of others
    return found


def ended(agent: Agent) -> Report:
    """The report of ranks that have all ended."""
    last: list[Report] = []

    def done() -> bool:
        last[:] = [agent.report(0.1)]
        return last[0].done

    until(done)
    return last[0]


def children(name: str) -> list[int]:
    """Process ids of this process's descendants that have called themselves so."""
    found = []
    for process in tree_of(RANK):
        try:
            if Path(f"/proc/{process.pid}/comm").read_text().strip() == name:
                found.append(process.pid)
        except OSError:
            continue
    return found


def test_ranks_of_the_next_attempt_are_forked_and_like_those_that_were_started(agent: Agent, tmp_path: Path) -> None:
    assert agent.start(launch(tmp_path, "tell-and-wait")) == 0
    pid = until(lambda: children(NAME))[0]
    agent.stop(0.0)
    changes = {"master_port": 20002, "node_rank": 1, "world_size": 4}
    assert agent.start(launch(tmp_path, "tell-and-wait", attempt=1, **changes)) == 2
    assert children(NAME) == [pid], "it serves again"
    until(lambda: "unfinished" in (tmp_path / "logs" / "rank-00003.log").read_text())
    for state in agent.states():
        assert os.getsid(state.pid) == state.pid
        fields = Path(f"/proc/{state.pid}/stat").read_text().rpartition(")")[2].split()
        assert int(fields[1]) == os.getpid()
        log = f"{tmp_path}/logs/rank-{state.rank:05d}.log"
        assert [os.readlink(f"/proc/{state.pid}/fd/{number}") for number in range(3)] == ["/dev/null", log, log]
    cold = json.loads((tmp_path / "logs" / "rank-00001.log").read_text().splitlines()[1])
    warm = json.loads((tmp_path / "logs" / "rank-00003.log").read_text().splitlines()[1])
    new = {"RANK": "3", "WORLD_SIZE": "4", "NODE_RANK": "1", "MASTER_PORT": "20002", "TRESTLE_ATTEMPT": "1"}
    assert warm == cold | new
    report = agent.stop(0.0)
    assert [state.exit_code for state in report.states] == [-signal.SIGTERM] * 2


def test_a_spare_node_is_ready_before_it_has_ranks(agent: Agent, tmp_path: Path) -> None:
    agent.stand_by(launch(tmp_path, "ignore-term"))
    until(lambda: children(NAME))
    assert agent.start(launch(tmp_path, "ignore-term", attempt=5)) == 2
    until(lambda: len(tree_of(RANK)) == 3)  # the process that a rank is forked through may still be ending


def test_a_forked_rank_that_dies_is_seen_and_its_children_end(agent: Agent, tmp_path: Path) -> None:
    agent.start(launch(tmp_path, "with-child"))
    until(lambda: children(NAME))
    agent.stop(0.0)
    assert agent.start(launch(tmp_path, "with-child", attempt=1)) == 2
    log = tmp_path / "logs" / "rank-00001.log"
    until(lambda: log.read_text().count("child ") == 2)
    grandchild = int(log.read_text().rsplit("child ", 1)[1])
    os.kill(agent.states()[1].pid, signal.SIGKILL)
    until(lambda: agent.states()[1].exit_code == -signal.SIGKILL)
    assert gone(grandchild) and agent.states()[0].exit_code is None


def test_a_standby_that_is_killed_leaves_the_ranks_alone_and_is_replaced(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby_module, "LOOK_SECONDS", 0.0)
    agent.start(launch(tmp_path, "ignore-term"))
    until(lambda: children(NAME))
    agent.stop(0.0)
    assert agent.start(launch(tmp_path, "ignore-term", attempt=1)) == 2
    first = children(NAME)[0]
    os.kill(first, signal.SIGKILL)
    notes = until(lambda: agent.report(0.0).notes)
    assert notes == ["the standby was killed by SIGKILL: standby imports"]
    assert until(lambda: children(NAME)) != [first]
    assert [state.exit_code for state in agent.states()] == [None, None]
    agent.stop(0.0)
    assert agent.start(launch(tmp_path, "ignore-term", attempt=2)) == 2


@pytest.mark.parametrize("moment", ["while it loads", "when it is ready"])
def test_ranks_start_cold_without_a_standby_that_hangs(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(standby_module, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(standby_module, "ANSWER_SECONDS", 0.5)
    words = ["ignore-term", "hanging"] if moment == "while it loads" else ["ignore-term"]
    agent.start(launch(tmp_path, *words))
    if moment == "when it is ready":
        os.kill(until(lambda: children(NAME))[0], signal.SIGSTOP)
    else:
        until(lambda: len(tree_of(RANK)) == 3)
    agent.stop(0.0)
    assert agent.start(launch(tmp_path, *words, attempt=1)) == 0
    assert [state.exit_code for state in agent.states()] == [None, None]


def test_a_rank_whose_answer_comes_too_late_ends_and_is_reaped(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby_module, "LOOK_SECONDS", 0.2)
    agent.start(launch(tmp_path, "ignore-term"))
    standby = agent._standby
    assert standby is not None
    until(lambda: standby._ready)  # so that the next answer is a rank's
    agent.stop(0.0)

    def gives_up(line: Any) -> dict[str, Any]:
        answer = json.loads(line.recv(65536))  # it has been forked, and waits for the word to go on
        until(lambda: os.path.exists(f"/proc/{answer['pid']}"))
        late.append(answer["pid"])
        raise TimeoutError("timed out")

    late: list[int] = []
    hear = standby_module._hear
    with monkeypatch.context() as patch:
        patch.setattr(standby_module, "_hear", lambda line: hear(line) if late else gives_up(line))
        assert agent.start(launch(tmp_path, "ignore-term", attempt=1)) == 0
    assert len(late) == 1
    until(lambda: not os.path.exists(f"/proc/{late[0]}"))
    assert late[0] not in [state.pid for state in agent.states()]


@pytest.mark.parametrize(
    ("imports", "note"),
    [
        ("broken", "the standby exited with code 1: ImportError: no module named so"),
        ("thread", "no standby ranks: an import has left the thread helper running, which does not survive a fork"),
    ],
)
def test_a_command_that_cannot_stand_by_is_left_in_peace(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imports: str, note: str
) -> None:
    monkeypatch.setattr(standby_module, "LOOK_SECONDS", 0.0)
    agent.start(launch(tmp_path, "ignore-term", imports))
    assert until(lambda: agent.report(0.0).notes) == [note]
    tries = standby_module.MOST_DEATHS if imports == "broken" else 1
    standby = agent._standby
    assert standby is not None
    until(lambda: standby._deaths >= tries and len(tree_of(RANK)) == 2)
    agent.stop(0.0)
    assert agent.start(launch(tmp_path, "ignore-term", imports, attempt=1)) == 0


def test_another_share_of_the_cores_needs_another_standby(agent: Agent, tmp_path: Path) -> None:
    agent.start(launch(tmp_path, "ignore-term"))
    first = until(lambda: children(NAME))[0]
    agent.stop(0.0)
    changes = {"ranks_per_node": 1, "environment": {"GIVEN": "yes", "OMP_NUM_THREADS": "7"}}
    assert agent.start(launch(tmp_path, "ignore-term", attempt=1, **changes)) == 0
    assert gone(first)


def test_no_standby_where_memory_is_short_which_is_said_once(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby_module, "LOOK_SECONDS", 0.0)
    root = machine(tmp_path, free=400_000_000)
    monkeypatch.setattr(standby_module, "available_memory", lambda _: available_memory(root))
    agent.start(launch(tmp_path, "ignore-term", standby=None))
    note = until(lambda: agent.report(0.0).notes)[0]
    assert note.startswith("no standby ranks: 400 MB of memory are free, but a standby needs 537 MB and the ranks")
    time.sleep(1.0)  # it goes on looking
    assert agent.report(0.0).notes == [] and len(tree_of(RANK)) == 2
    machine(tmp_path, free=4_000_000_000)
    pid = until(lambda: children(NAME))[0]
    machine(tmp_path, free=1_000_000)
    assert gone(pid), "it gives its memory back before the ranks lack it"


def machine(tmp_path: Path, free: int) -> Path:
    """A /proc and /sys with so many bytes free."""
    (tmp_path / "proc").mkdir(exist_ok=True)
    draft = tmp_path / "proc" / "draft"
    draft.write_text(f"MemTotal: 99 kB\nMemAvailable: {free // 1000 * 1000 // 1024 + 1} kB\n")
    draft.replace(tmp_path / "proc" / "meminfo")
    return tmp_path


def test_a_container_s_limit_counts_without_what_its_cache_would_give_up(tmp_path: Path) -> None:
    root = machine(tmp_path, free=10_000_000)
    group = root / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (root / "proc" / "self").mkdir()
    (root / "proc" / "self" / "cgroup").write_text("0::/\n")
    (group / "memory.max").write_text("max\n")
    assert abs(available_memory(root) - 10_000_000) < 2048
    (group / "memory.max").write_text("9000000\n")
    (group / "memory.current").write_text("8000000\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 500000\nactive_file 7\n")
    assert available_memory(root) == 1_500_000
    assert memory_of([os.getpid(), 2**30]) > 1_000_000


def test_standby_and_forked_ranks_die_with_the_agent(tmp_path: Path) -> None:
    # What is unpickled is what this very test pickled, for the child that it starts.
    script = (
        "import sys, pickle, time; from cluster import standby; from cluster.agent import Agent\n"
        "standby.PATIENCE_SECONDS = standby.ANSWER_SECONDS = 60.0\n"
        "launches = pickle.loads(bytes.fromhex(sys.argv[1])); agent = Agent(sys.argv[2])\n"
        "agent.start(launches[0])\n"
        "while not (agent._standby._ready): time.sleep(0.01)\n"
        "agent.stop(0.0); warm = agent.start(launches[1])\n"
        "print(warm, agent._standby._process.pid, *[s.pid for s in agent.states()], flush=True); time.sleep(600)"
    )
    launches = [replace(launch(tmp_path, "ignore-term"), attempt=attempt) for attempt in (0, 1)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script, pickle.dumps(launches).hex(), str(tmp_path / "scratch")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        warm, *pids = (int(word) for word in process.stdout.readline().split())
        assert warm == 2 and len(pids) == 3 and not any(gone(pid, 0.1) for pid in pids)
        process.kill()
        assert all(gone(pid) for pid in pids)
