"""Jobs on a real head with a token: submitted, stopped, killed, submitted again, refused; and nobody else gets in."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.run_files import RunFiles
from tests.launcher.head import Head, ray_head

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).parents[2]
# Made here: what stands in this file is shipped.
SECRETS = {name: f"planted-{secrets.token_hex(8)}" for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN")}
PATIENCE = 300.0
QUICK = ("--cluster.standby", "false", "--training.validate_every", "0")
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head(token=True, nodes=2) as started:
        yield started


@dataclass
class Place:
    """A folder with a recipe and its shards from where jobs are submitted, in a shell that has secrets."""

    folder: Path
    head: Head
    run: RunFiles = field(init=False)

    def __post_init__(self) -> None:
        self.run = RunFiles(self.folder / "runs" / "far")

    def trestle(self, *words: str, **more: str) -> Done:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **SECRETS, **more}
        options = ["--address", self.head.dashboard, "--token-file", str(self.head.token_file)]
        return subprocess.run(
            [sys.executable, "-m", "launcher", words[0], *options, *words[1:]],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE + 60,
        )

    def submit(self, *words: str, **more: str) -> Done:
        return self.trestle("submit", "recipe.yaml", "--name", "far", "--cluster.nodes", "2", *QUICK, *words, **more)

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.run.last_step() < step:
            assert time.monotonic() < deadline, self.trestle("logs", "far").stdout[-4000:]
            time.sleep(0.1)  # the job's own files: nothing tells of them

    def ranks(self) -> dict[int, Path]:
        """Directory of each running rank's process, by process id."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and b"training.worker\0" + str(self.run.path).encode() in _read(entry / "cmdline"):
                with contextlib.suppress(OSError):  # it has just ended
                    found[int(entry.name)] = Path(os.readlink(entry / "cwd"))
        return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has just ended, or is another user's
        return b""


@pytest.fixture(scope="module")
def place(workplace: Path, tmp_path_factory: pytest.TempPathFactory, head: Head) -> Place:
    folder = tmp_path_factory.mktemp("place")
    (folder / "recipe.yaml").write_text((workplace / "recipe.yaml").read_text())
    (folder / "shards").symlink_to(workplace / "shards")
    return Place(folder, head)


def test_nobody_lists_or_submits_jobs_without_the_token(head: Head) -> None:
    assert stat.S_IMODE(head.token_file.stat().st_mode) == 0o600

    def status(body: dict[str, str] | None, token: str | None) -> int:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{head.dashboard}/api/jobs/", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert status(None, None) == 401 and status({"entrypoint": "true"}, None) == 401
    assert status(None, "0" * 64) == 403 and status({"entrypoint": "true"}, "0" * 64) == 403
    assert status(None, head.token_file.read_text()) == 200


def test_job_is_submitted_stopped_killed_and_goes_on_each_time(place: Place) -> None:
    """Two nodes that keep Ray's files at different paths. One story: each job takes seconds to start."""
    forever = ("--training.steps", "100000", "--training.log_every", "1")
    too_large = place.submit(*forever, RAY_max_grpc_message_size="100000")
    assert too_large.returncode == 2 and "Ray takes less than 0.1 MB: name in .gitignore" in too_large.stderr

    submitted = place.submit(*forever)
    assert submitted.returncode == 0, submitted.stderr
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert f"shipping commit {commit.stdout[:12]}" in submitted.stdout
    assert "ssh -N -L 6006:127.0.0.1:6006 HEAD" in submitted.stdout
    place.wait_for_step(1)
    ranks = place.ranks()
    packages = {path.relative_to(place.head.root).parts[0] for path in ranks.values()}
    assert packages == {"head", "other"} and all(path.name.startswith("_ray_pkg_") for path in ranks.values())
    for pid in ranks:  # nothing of the submitting shell, and nothing that opens the head
        environment = _read(Path(f"/proc/{pid}/environ"))
        assert b"RANK=" in environment and b"RAY_" not in environment
        assert not any(secret.encode() in environment for secret in SECRETS.values())
    assert_no_secret_in_a_command_line(place)
    again = place.submit(*forever)
    assert again.returncode == 2 and "trestle-far-1 is at work on this run" in again.stderr

    stopped = place.trestle("stop", "far")
    assert stopped.returncode == 0, stopped.stderr
    newest = place.run.newest()
    assert f"trestle-far-1 saved; its last checkpoint is {newest.path}" in stopped.stdout
    assert newest.step == place.run.last_step(), "it has saved the step that it was stopped in"
    assert place.trestle("logs", "far", "--follow").returncode == 75
    [noted] = place.run.events("submitted")
    assert noted["job"] == "trestle-far-1" and noted["commit"] == commit.stdout.strip()

    assert place.submit(*forever).returncode == 0
    place.wait_for_step(newest.step + 1)
    assert [event["step"] for event in place.run.events("resumed")] == [newest.step]
    killed = place.trestle("stop", "trestle-far-2", "--now")
    assert killed.returncode == 0 and "was killed" in killed.stdout, killed.stderr
    deadline = time.monotonic() + PATIENCE
    while place.ranks():
        assert time.monotonic() < deadline
        time.sleep(0.1)  # not our children

    end = str(place.run.last_step() + 4)
    followed = place.submit("--training.steps", end, "--follow")
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert f"finished at step {end}" in followed.stdout and place.run.newest().step == int(end)

    refused = place.trestle("submit", "recipe.yaml", "--data.mix.0.shards", "/none", "--follow")
    assert refused.returncode == 2
    assert "not to be seen from here, so that only the job will check them: /none" in refused.stdout
    assert "trestle: the shards /none are not there" in refused.stdout

    listed = place.trestle("jobs", "--json")
    jobs = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [(job["name"], job["status"], job["exit_code"]) for job in jobs] == [
        ("trestle-far-1", "saved", 75),
        ("trestle-far-2", "killed", 1),
        ("trestle-far-3", "finished", 0),
        ("trestle-small-1", "refused", 2),
    ]
    assert jobs[2]["step"] == int(end) and jobs[2]["nodes"] == 2
    table = place.trestle("jobs")
    assert table.returncode == 0 and table.stdout.count("\n") == 5
    assert place.trestle("stop", "far").returncode == 0, "what has ended need not be stopped"
    unknown = place.trestle("logs", "nope")
    assert unknown.returncode == 2 and "has no job nope; it has trestle-far-1" in unknown.stderr
    assert_no_secret_was_written(place)


def assert_no_secret_in_a_command_line(place: Place) -> None:
    """Of whatever runs on this machine: both nodes of Ray, the job, its ranks."""
    shown = b"".join(_read(entry / "cmdline") for entry in Path("/proc").iterdir() if entry.name.isdigit())
    assert str(place.head.root).encode() in shown
    assert not any(secret.encode() in shown for secret in (*SECRETS.values(), place.head.token_file.read_text()))


def assert_no_secret_was_written(place: Place) -> None:
    """In the run's folder, in whatever Ray has written on both nodes, and in what the head tells of its jobs."""
    token = place.head.token_file.read_text()
    request = urllib.request.Request(f"{place.head.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        told = answer.read().decode()
    assert "trestle-far-1" in told
    written = [path for where in (place.run.path, place.head.root) for path in where.rglob("*") if path.is_file()]
    assert any(path.name == "job-driver-trestle-far-1.log" for path in written)
    assert any(path.name == "events.jsonl" for path in written) and len(written) > 50
    for secret in (*SECRETS.values(), token):
        assert secret not in told
        holders = [path for path in written if secret.encode() in path.read_bytes()]
        assert [path for path in holders if path != place.head.token_file] == []


def test_wrong_or_open_token_file_is_one_line(place: Place, tmp_path: Path) -> None:
    wrong, opened = tmp_path / "wrong", tmp_path / "opened"
    for path, mode in ((wrong, 0o600), (opened, 0o644)):
        path.write_text("0" * 64)
        path.chmod(mode)
    done = place.trestle("jobs", "--token-file", str(wrong))
    assert done.returncode == 1 and "does not take this token (403)" in done.stderr and done.stderr.count("\n") == 1
    done = place.trestle("jobs", "--token-file", str(opened))
    assert done.returncode == 2 and f"chmod 600 {opened}" in done.stderr and done.stderr.count("\n") == 1
