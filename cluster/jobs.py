"""Jobs on a cluster that is not this machine: a command with its files, handed to a head over HTTP (Ray Jobs).

Written against Ray 2.60. A job is a command that Ray runs on its head node, in a folder that holds the files that came
with it; Ray unpacks the same files for the job's actors on the other nodes. Ray knows only that a job succeeded, failed
or was stopped: its exit code is what the command has left in the last line of its output (`closing_line`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.authentication import check_dashboard, travels_in_clear, use_no_token, use_token_file
from cluster.errors import ClusterError, HeadUnreachable, JobUnknown, UserError
from cluster.local import forget_cached_settings
from cluster.policy import EXIT_ENVIRONMENT, EXIT_FINISHED, EXIT_RESUME_ME, EXIT_USER_ERROR

POLL_SECONDS = 0.5
TAIL_LINES = 30
STOP_MARGIN_SECONDS = 30.0
"""What a job may take beyond its ranks' grace time to give its nodes back and leave, before Ray kills it."""

CLOSING = "trestle job ended: "
PREFIX = "trestle-"
TITLE = "trestle_run"
"""The key in a job's metadata by which ours are told from others."""

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class ClusterJob:
    """What the head says about one job. Times in Unix seconds."""

    name: str
    status: str  # pending | running | finished | saved | refused | failed | killed | stopped (without having saved)
    exit_code: int | None  # None while it runs, and of a stopped job whose last line is not known
    started: float | None
    ended: float | None
    metadata: Mapping[str, str] = field(default_factory=dict)
    message: str = ""
    node: str | None = None  # Ray's name of the node where the command runs
    process: int | None = None

    @property
    def run(self) -> str:
        """The run's name."""
        return self.metadata.get(TITLE, "")

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.ended is not None


def closing_line(exit_code: int, **facts: Any) -> str:
    """What a job's command prints last: its exit code and what else `trestle stop` should say, as JSON."""
    return CLOSING + json.dumps({"exit_code": exit_code, **facts})


def read_closing_line(text: str) -> dict[str, Any]:
    """The facts in the last such line of a job's output, {} where there is none."""
    for line in reversed(text.splitlines()):
        if line.startswith(CLOSING):
            try:
                facts = json.loads(line.removeprefix(CLOSING))
            except ValueError:
                return {}
            return facts if isinstance(facts, dict) and isinstance(facts.get("exit_code"), int) else {}
    return {}


def job_name(run: str, jobs: list[ClusterJob]) -> str:
    """`trestle-RUN-N`, N counting this run's jobs on this head from 1."""
    stem = f"{PREFIX}{re.sub(r'[^A-Za-z0-9_.-]', '_', run)}-"
    numbers = [job.name.removeprefix(stem) for job in jobs if job.name.startswith(stem)]
    return f"{stem}{1 + max((int(number) for number in numbers if number.isdigit()), default=0)}"


def connect(
    address: str,
    *,
    token_file: str | None = None,
    allow_open: bool = False,
    before_clear_token: Callable[[str], None] = lambda address: None,
) -> Jobs:
    """The jobs of the head whose dashboard is at `address`, http(s)://host:port.

    A head that asks for no token gets none. `before_clear_token` is called with the address before a token goes there
    that can be read on the way; what it raises keeps the token here.
    Raises `UserError` for an address or a token file that cannot be, `OpenHead`, `HeadUnreachable`.
    """
    if re.fullmatch(r"https?://[^/@\s]+", address.rstrip("/")) is None:
        raise UserError(f"--address is {address!r}; it must look like http://127.0.0.1:8265, the head's dashboard")
    address = address.rstrip("/")
    if check_dashboard(address, allow_open):
        use_token_file(token_file)
        if travels_in_clear(address):
            before_clear_token(address)
    else:
        use_no_token()
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # they would outdo the address that was checked
        os.environ.pop(name, None)
    forget_cached_settings()
    logging.getLogger("ray").setLevel(logging.ERROR)
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with _speaking_to(address):
        return Jobs(JobSubmissionClient(address), address)


class Jobs:
    """A head's jobs. Every method may raise `HeadUnreachable`."""

    def __init__(self, client: Any, address: str) -> None:
        self._client = client
        self.address = address

    def list(self) -> list[ClusterJob]:
        """Ours, oldest first."""
        with _speaking_to(self.address):
            found = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted((job for job in found if job.run), key=lambda job: job.started or math.inf)

    def find(self, name: str) -> ClusterJob:
        """The job of that name, or the newest of the run of that name. Raises `JobUnknown`."""
        jobs = self.list()
        found = [job for job in jobs if name in (job.name, job.run)]
        if found:
            return self._with_exit_code(found[-1])
        names = ", ".join(job.name for job in jobs[-5:]) or "none"
        raise JobUnknown(f"{self.address} has no job {name}; it has {names}: see `trestle jobs`")

    def submit(self, name: str, command: str, package: Path, grace_seconds: float, metadata: Mapping[str, str]) -> None:
        """Start `command` (for a shell, in a folder with the files of the zip `package`) as the job `name`.

        `grace_seconds`: how long it may take to end after `stop`. Raises `UserError` for a package above Ray's limit.
        """
        from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
        from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

        # The second is what Ray's own client looks at (512 MiB), but the dashboard takes no request above the first.
        limit = min(DASHBOARD_CLIENT_MAX_SIZE, GCS_STORAGE_MAX_SIZE)
        if package.stat().st_size >= limit:
            raise PackageTooLarge(package.stat().st_size, limit)
        wait = math.ceil(grace_seconds + STOP_MARGIN_SECONDS)
        with _speaking_to(self.address):
            self._client.submit_job(
                entrypoint=command,
                submission_id=name,
                metadata=dict(metadata),
                runtime_env={"working_dir": str(package), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(wait)}},
            )

    def output(self, job: ClusterJob) -> str:
        """All that the job has printed."""
        with _speaking_to(self.address):
            return str(self._client.get_job_logs(job.name))

    def tail(self, job: ClusterJob) -> str:
        """The last lines of that, without fetching all of it where the head can help it."""
        if job.node is not None:
            where = {"node_id": job.node, "filename": f"job-driver-{job.name}.log", "lines": str(TAIL_LINES)}
            with _speaking_to(self.address):
                answer = self._client._do_request("GET", "/api/v0/logs/file", params=where)
            if answer.status_code == 200:
                return str(answer.text)
        return "\n".join(self.output(job).splitlines()[-TAIL_LINES:])

    def follow(self, job: ClusterJob, on_text: Callable[[str], None]) -> ClusterJob:
        """Hand what the job has printed and prints to `on_text` until it has ended; how it ended then."""

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job.name):
                on_text(text)

        with _speaking_to(self.address):
            asyncio.run(tail())
        return self.wait(job)

    def wait(self, job: ClusterJob, seconds: float = math.inf) -> ClusterJob:
        """Wait until the job has ended. Raises `ClusterError` after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            with _speaking_to(self.address):
                now = _job(self._client.get_job_info(job.name))
            if now.over:
                return self._with_exit_code(now)
            if time.monotonic() > deadline:
                raise ClusterError(f"{job.name} has not ended within {seconds:g} s; `trestle stop {job.name} --now`")
            time.sleep(POLL_SECONDS)  # the API tells only when asked

    def stop(self, job: ClusterJob) -> None:
        """Ask the job to save and leave: SIGTERM, and SIGKILL after the grace time that it was submitted with."""
        with _speaking_to(self.address):
            self._client.stop_job(job.name)

    def kill(self, job: ClusterJob) -> None:
        """End the job's command at once, and its ranks with it.

        Ray offers only the patient way: a second, tiny job on the same node does it.
        """
        if job.process is None:  # it has started nothing yet that could need time
            return self.stop(job)
        # Checked, since by then the number may be another's: only the job's own processes have its name there.
        title = shlex.quote(f'"job_submission_id": "{job.name}"')
        mine = f"grep -qzF {title} /proc/{job.process}/environ"
        with _speaking_to(self.address):
            self._client.submit_job(entrypoint=f"{mine} && kill -KILL {job.process}")

    def _with_exit_code(self, job: ClusterJob) -> ClusterJob:
        if not job.over or job.status != "stopped":
            return job
        code = read_closing_line(self.tail(job)).get("exit_code")
        return _judged(job, code) if code is not None else job


class PackageTooLarge(UserError):
    """The files that should go with a job are more than Ray takes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"the package has {size / 1e6:.3g} MB, and Ray takes less than {limit / 1e6:.3g} MB")


def _job(details: Any) -> ClusterJob:
    status = details.status.value
    driver = details.driver_info
    job = ClusterJob(
        name=details.submission_id,
        status=status.lower(),
        exit_code=None,
        started=None if details.start_time is None else details.start_time / 1000,
        ended=None if status not in _ENDED else (details.end_time or details.start_time or 0) / 1000,
        metadata=details.metadata or {},
        message=(details.message or "").partition(", last available logs")[0],
        node=details.driver_node_id,
        process=None if driver is None else int(driver.pid),
    )
    if status == "SUCCEEDED":
        return _judged(job, EXIT_FINISHED)
    return _judged(job, details.driver_exit_code) if status == "FAILED" else job


def _judged(job: ClusterJob, code: int | None) -> ClusterJob:
    known = {EXIT_FINISHED: "finished", EXIT_USER_ERROR: "refused", EXIT_RESUME_ME: "saved"}
    if code in known:
        return replace(job, status=known[code], exit_code=code)
    if job.status != "stopped":
        job = replace(job, status="killed" if code is not None and code < 0 else "failed")
    return replace(job, exit_code=EXIT_ENVIRONMENT)


@contextmanager
def _speaking_to(address: str) -> Iterator[None]:
    """Turn what Ray's client raises into one line."""
    import aiohttp
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise HeadUnreachable(
            f"the head at {address} does not take this token ({'403' if 'failed' in str(error) else '401'}): "
            "name a file that holds the head's with --token-file or RAY_AUTH_TOKEN_PATH"
        ) from error
    except (requests.RequestException, aiohttp.ClientError, ConnectionError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:300]
        raise HeadUnreachable(f"the head at {address} failed or went away: {text}") from error
