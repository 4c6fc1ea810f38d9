"""Phases run each task once, over any kills, in this process or on Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.config import ClusterConfig
from cluster.session import open_session
from data_pipeline.errors import BadCorpus, EnvironmentFailure
from data_pipeline.prepare.progress import Progress
from data_pipeline.prepare.ray_tasks import RayTasks
from data_pipeline.prepare.runner import InProcess, Runner, Task

REPOSITORY = Path(__file__).parents[2]


def square(folder: Path, *, number: int, log: str = "", threads: int = 1) -> None:
    """Writes number squared; notes the call in a log that is no result."""
    if log:
        with open(log, "a") as file:
            file.write(f"{number}\n")
    (folder / "square.json").write_text(json.dumps(number * number))


def fail(folder: Path, *, how: str) -> None:
    (folder / "half").write_text("written")
    if how == "user":
        raise BadCorpus("this file is damaged: repair it")
    if how == "kill once":
        marker = folder.parents[1] / "killed"
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


def runner_in(path: Path, lines: list[str] | None = None) -> Runner:
    path.mkdir(exist_ok=True)
    return Runner(path, InProcess(), Progress((lines if lines is not None else []).append, every_seconds=0.0))


def test_results_come_in_the_order_of_the_tasks_and_nothing_is_done_twice(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tasks = [Task({"number": n, "log": str(log)}) for n in range(5)]
    for _ in range(2):
        folders = runner_in(tmp_path / "work").map("squares", square, tasks)
        assert [json.loads((folder / "square.json").read_text()) for folder in folders] == [0, 1, 4, 9, 16]
    assert log.read_text().split() == ["0", "1", "2", "3", "4"]


def test_a_change_of_the_arguments_is_another_task_and_one_of_the_options_is_not(tmp_path: Path) -> None:
    runner = runner_in(tmp_path / "work")
    first = runner.map("squares", square, [Task({"number": 2}, options={"threads": 1})])
    assert runner.map("squares", square, [Task({"number": 2}, options={"threads": 7})]) == first
    assert runner.map("squares", square, [Task({"number": 3})]) != first


def test_equal_tasks_of_a_phase_are_done_once(tmp_path: Path) -> None:
    tasks = [Task({"number": number, "log": str(tmp_path / "log")}) for number in (3, 3, 4, 3)]
    (tmp_path / "work").mkdir()
    folders = Runner(tmp_path / "work", InProcess(), Progress(lambda line: None)).map("square", square, tasks)
    assert [json.loads((folder / "square.json").read_text()) for folder in folders] == [9, 9, 16, 9]
    assert (tmp_path / "log").read_text() == "3\n4\n"


def test_a_failing_task_leaves_nothing_and_those_before_it_stay(tmp_path: Path) -> None:
    runner = runner_in(tmp_path / "work")
    runner.map("squares", square, [Task({"number": 2})])
    with pytest.raises(BadCorpus, match="repair it"):
        runner.map("failing", fail, [Task({"how": "user"})])
    assert list((tmp_path / "work" / "failing").iterdir()) == []
    assert len(list((tmp_path / "work" / "squares").iterdir())) == 1


def test_what_a_killed_process_left_unfinished_is_removed_and_done_again(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.data_pipeline.test_runner import *\n"
        "runner_in(Path(sys.argv[1])).map('failing', fail, [Task({'how': 'kill'})])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "work")], cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "work" / "failing").iterdir()
    assert ".unfinished-" in left.name
    (folder,) = runner_in(tmp_path / "work").map("failing", fail, [Task({"how": "not"})])
    assert list((tmp_path / "work" / "failing").iterdir()) == [folder]


def test_progress_tells_share_rate_and_time_left(tmp_path: Path) -> None:
    lines: list[str] = []
    runner_in(tmp_path / "work").map("squares", square, [Task({"number": n}, weight=1e6) for n in range(2)])
    runner_in(tmp_path / "work", lines).map("squares", square, [Task({"number": n}, weight=1e6) for n in range(4)])
    assert lines[0] == "squares: 50% was done before"
    assert lines[1].startswith("squares: 75%, ") and lines[1].endswith("left") and "MB/s" in lines[1]


def test_on_ray_results_are_the_same_errors_come_through_and_a_dead_worker_is_replaced(tmp_path: Path) -> None:
    with open_session(ClusterConfig(), 2, on_close=lambda: None):
        executor = RayTasks()
        assert executor.workers == 2
        (tmp_path / "work").mkdir()
        runner = Runner(tmp_path / "work", executor, Progress(lambda line: None))
        folders = runner.map("squares", square, [Task({"number": n}) for n in range(8)])
        assert [json.loads((folder / "square.json").read_text()) for folder in folders] == [n * n for n in range(8)]
        with pytest.raises(BadCorpus, match="repair it"):
            runner.map("failing", fail, [Task({"how": "user"}), Task({"how": "not"})])
        assert len(runner.map("killed", fail, [Task({"how": "kill once"})])) == 1
        with pytest.raises(EnvironmentFailure, match="died 4 times"):
            runner.map("killed", fail, [Task({"how": "kill"})])
    local = runner_in(tmp_path / "work")
    assert local.map("squares", square, [Task({"number": n}) for n in range(8)]) == folders
