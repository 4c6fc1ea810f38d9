"""What a node's ranks say when they are asked where they are: real processes, no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.evidence import Evidence, evidence_of
from cluster.stacks import ANSWER_SHARE, Target, collect

ROOT = Path(__file__).parents[2]
LISTENS = """
import ctypes, os, sys, time
from training import stacks
stacks.listen(os.environ)
def sits_here():
    print("ready", flush=True)
    time.sleep(600)
def holds_the_interpreter_lock():
    sys.setswitchinterval(1e6)
    ctypes.PyDLL(None).write(1, b"ready\\n", 6)  # print would let go of the lock
    sum(iter(int, 1))
"""
DEAF = "import time\ndef deaf():\n    print('ready', flush=True)\n    time.sleep(600)\ndeaf()"


@contextmanager
def rank(tmp_path: Path, script: str, *, stopped: bool = False) -> Iterator[Target]:
    path = tmp_path / "stacks-00000"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRESTLE_STACKS": str(path)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            if stopped:
                process.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            yield Target(0, process.pid, path, stopped)
            assert process.poll() is None, "a question ended the rank"
        finally:
            process.kill()


def asked(target: Target, seconds: float = 20.0) -> tuple[Evidence, float]:
    started = time.monotonic()
    answer = collect([target], seconds)[0]
    return answer, time.monotonic() - started


def test_a_rank_that_listens_tells_where_it_is_and_that_it_waits_for_nobody(tmp_path: Path) -> None:
    with rank(tmp_path, LISTENS + "sits_here()") as target:
        first, seconds = asked(target, 60.0)
        second, _ = asked(target)
    assert first.waiting is False and str(first.function).startswith("sits_here (<string>:")
    assert first.source == "written by the rank itself" and "in sits_here" in first.stacks
    assert seconds < ANSWER_SHARE * 60.0  # it does not use up its time
    assert second.stacks.count("in sits_here") == 1  # and shows no earlier answer again


def test_a_rank_that_holds_the_interpreter_lock_does_not_answer_but_shows_its_stacks(tmp_path: Path) -> None:
    with rank(tmp_path, LISTENS + "holds_the_interpreter_lock()") as target:
        answer, seconds = asked(target)
    assert answer.waiting is None and str(answer.function).startswith("holds_the_interpreter_lock (")
    assert seconds < 40.0


def test_a_rank_that_does_not_listen_or_is_stopped_is_read_from_outside_where_that_is_allowed(tmp_path: Path) -> None:
    for script, stopped, function in ((DEAF, False, "deaf"), (LISTENS + "sits_here()", True, "sits_here")):
        with rank(tmp_path, script, stopped=stopped) as target:
            answer, _ = asked(target)
        assert answer.waiting is None
        if answer.stacks:
            assert answer.source == "read from outside by py-spy" and f" in {function}" in answer.stacks
            assert str(answer.function).startswith(f"{function} (")
        else:  # no right to trace: said, with what would help
            assert answer.source.startswith("none: ") and "CAP_SYS_PTRACE" in answer.source


def test_what_is_no_python_or_has_gone_leaves_a_reason_instead_of_stacks(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        answer, _ = asked(Target(0, process.pid, tmp_path / "stacks", False))
        process.kill()
    assert answer.stacks == "" and answer.source.startswith("none: it has not answered, and py-spy")
    gone, _ = asked(Target(0, process.pid, tmp_path / "stacks", False))
    assert gone.waiting is None and gone.source.startswith("none: ")


def test_an_answer_that_makes_no_sense_is_as_none() -> None:
    for nonsense in ("", "{", "[1]", '"x"', '{"waiting": "yes", "members": 3, "entered": [1], "sequence": "4"}'):
        answer = evidence_of(nonsense, "", "")
        assert (answer.waiting, answer.members, answer.entered, answer.sequence) == (None, (), {}, None)
