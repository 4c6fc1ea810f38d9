"""The private Ray of a driver process: reachable by nobody else, and gone without a trace afterwards."""

from __future__ import annotations

import errno
import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.config import ClusterConfig
from cluster.errors import HeadUnreachable, RayStartError
from cluster.leftovers import Process, alive, tree_of
from cluster.listening import listening
from cluster.supervisor import run

ROOT = Path(__file__).parents[2]
RANK = Path(__file__).with_name("rank.py")
pytestmark = pytest.mark.timeout(300)

DRIVER = """
import json, sys
from pathlib import Path
from cluster import ClusterConfig, run
config = ClusterConfig(ranks_per_node=2, grace_seconds=60.0)
outcome = run([sys.executable, sys.argv[1], sys.argv[2]], config, tensor_parallel=2, environment={},
              log_directory=Path(sys.argv[3]), on_event=lambda e: print(json.dumps(e), flush=True),
              on_output=lambda line: print(line, flush=True))
print("outcome", outcome.exit_code, outcome.reason, flush=True)
sys.exit(outcome.exit_code)
"""


class Driver:
    """A driver process with its own temporary directory, in its own session, as in a terminal."""

    def __init__(self, tmp_path: Path, behaviour: str) -> None:
        self.temporary = Path(f"/tmp/t{os.getpid()}-{behaviour[:4]}")
        self.temporary.mkdir()
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(RANK), behaviour, str(tmp_path / "logs")],
            stdout=subprocess.PIPE,
            stderr=(tmp_path / "stderr").open("w"),
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.stderr = tmp_path / "stderr"

    def read_until(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if word in line:
                return line
        raise AssertionError(f"no {word!r}; stderr: {self.stderr.read_text()}")

    def processes(self) -> set[Process]:
        return {p for p in tree_of(str(self.temporary)) | tree_of(str(RANK)) if p.pid != self.process.pid}


@contextmanager
def driver(tmp_path: Path, behaviour: str) -> Iterator[Driver]:
    started = Driver(tmp_path, behaviour)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait()
        subprocess.run(["rm", "-rf", str(started.temporary)], check=True)


def status_of_job_submission(port: int) -> int | None:
    """HTTP status of an unauthenticated job submission, None where no HTTP is spoken."""
    body = json.dumps({"entrypoint": "true"}).encode()
    for path in ("/api/jobs/", "/api/job_agent/jobs/"):
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            if error.code != 404:
                return error.code
        except (OSError, ValueError, http.client.HTTPException):
            return None
    return 404


def test_sigterm_saves_and_meanwhile_nobody_gets_in(tmp_path: Path) -> None:
    with driver(tmp_path, "save-on-term") as run_:
        run_.read_until("ready")
        root = next(run_.temporary.glob("trestle-*"))
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
        assert stat.S_IMODE((root / "token").stat().st_mode) == 0o600
        processes = run_.processes()
        sockets = listening(processes | {Process(run_.process.pid, 0)})
        assert len(sockets) >= 4, "the head, the raylet, the driver and the agent listen somewhere"
        assert {address for address, _ in sockets} == {"127.0.0.1"}
        statuses = {port: status_of_job_submission(port) for _, port in sockets}
        assert 401 in statuses.values(), "the agent's HTTP API was not found, so that nothing has been shown"
        # 405: the exporter of figures, which only reads. None: gRPC, tried below.
        assert set(statuses.values()) <= {401, 405, None}, statuses
        assert_not_joinable_without_token(root, tmp_path)

        run_.process.send_signal(signal.SIGTERM)
        assert "75" in run_.read_until("outcome")
        assert run_.process.wait(120) == 75
        assert len(processes) >= 5 and not any(alive(process) for process in processes)
        assert list(run_.temporary.iterdir()) == []
        assert run_.stderr.read_text() == ""


def assert_not_joinable_without_token(root: Path, tmp_path: Path) -> None:
    """A process of the same machine, without the token, must be refused, clearly and soon."""
    port = next((root / "ray").glob("session_2*/gcs_server_port_*")).read_text().strip()
    script = (
        "import sys; from pathlib import Path; from cluster import ClusterConfig, ClusterError, run\n"
        f"config = ClusterConfig(address='127.0.0.1:{port}', connect_seconds=20.0)\n"
        "try: run(['true'], config, tensor_parallel=1, environment={}, log_directory=Path('logs'), "
        "on_event=print, on_output=print)\n"
        "except ClusterError as error: print(type(error).__name__, error); sys.exit(error.exit_code)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN"):
        environment.pop(name, None)
    command = [sys.executable, "-c", script]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=100)
    assert answer.returncode == 1 and answer.stdout.count("\n") == 1, answer
    assert answer.stdout.startswith("HeadUnreachable the Ray head at 127.0.0.1") and "wants its token" in answer.stdout


def test_a_second_ctrl_c_ends_everything_at_once(tmp_path: Path) -> None:
    with driver(tmp_path, "ignore-term") as run_:
        run_.read_until("ready")
        processes = run_.processes()
        assert len(processes) >= 5
        for _ in range(2):
            os.killpg(run_.process.pid, signal.SIGINT)  # as a terminal does: to the whole group
            time.sleep(1.0)  # a second Ctrl-C by a person, while the first is being dealt with
        assert "outcome 130" in run_.read_until("outcome")
        assert run_.process.wait(120) == 130
        assert not any(alive(process) for process in processes)
        assert list(run_.temporary.iterdir()) == []


def test_a_killed_driver_takes_everything_with_it(tmp_path: Path) -> None:
    with driver(tmp_path, "ignore-term") as run_:
        rank = int(run_.read_until("ready").split()[1])
        processes = run_.processes()
        assert rank in {process.pid for process in processes}
        run_.process.kill()
        deadline = time.monotonic() + 60
        while any(alive(process) for process in processes) and time.monotonic() < deadline:
            time.sleep(0.1)  # not our children: no event to wait for
        assert not any(alive(process) for process in processes)
        while list(run_.temporary.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.1)  # the guard process clears up after the killed driver
        assert list(run_.temporary.iterdir()) == []


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_port_where_no_ray_answers_is_given_up_in_time(tmp_path: Path, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        config = ClusterConfig(address=f"127.0.0.1:{server.getsockname()[1]}", connect_seconds=2.0)
        started = time.monotonic()
        with pytest.raises(HeadUnreachable, match="no Ray head has answered at ") as raised:
            run(
                ["true"],
                config,
                tensor_parallel=1,
                environment={},
                log_directory=tmp_path,
                on_event=print,
                on_output=print,
            )
        assert time.monotonic() - started < 60
        assert raised.value.exit_code == 1 and "\n" not in str(raised.value)


def test_a_ray_that_cannot_start_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = tmp_path / "nowhere"
    monkeypatch.setattr("tempfile.tempdir", str(nowhere)[:20] + "/nowhere")
    with pytest.raises(RayStartError, match="no place for Ray's files") as raised:
        run(
            ["true"],
            ClusterConfig(),
            tensor_parallel=1,
            environment={},
            log_directory=tmp_path,
            on_event=print,
            on_output=print,
        )
    assert raised.value.exit_code == 1 and "\n" not in str(raised.value)


def test_a_ray_whose_parts_do_not_come_up_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray._private.services

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EADDRINUSE, "Address already in use")

    short = Path(f"/tmp/t{os.getpid()}")
    short.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(short))
    monkeypatch.setattr(ray._private.services, "start_raylet", fail)  # the head itself is up by then
    environment = dict(os.environ)
    with pytest.raises(RayStartError, match=r"the embedded Ray did not start: .*Address already in use") as raised:
        run(
            ["true"],
            ClusterConfig(),
            tensor_parallel=1,
            environment={},
            log_directory=tmp_path,
            on_event=print,
            on_output=print,
        )
    assert raised.value.exit_code == 1 and "\n" not in str(raised.value)
    assert dict(os.environ) == environment
    assert list(short.iterdir()) == [] and not tree_of(str(short))
    short.rmdir()


@pytest.mark.timeout(300)
def test_ranks_are_as_important_as_whoever_starts_them(tmp_path: Path) -> None:
    """Ray's workers are nice to everything else unless told otherwise, and so would be all that they start."""
    said: list[str] = []
    command = [sys.executable, "-c", "import os; print('nice', os.nice(0))"]
    outcome = run(
        command,
        ClusterConfig(),
        tensor_parallel=1,
        environment={},
        log_directory=tmp_path / "logs",
        on_event=lambda event: None,
        on_output=said.append,
    )
    assert (outcome.exit_code, said) == (0, [f"nice {os.nice(0)}"])
