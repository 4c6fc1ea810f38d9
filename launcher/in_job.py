"""What a submitted job runs on the cluster, `python -m launcher.in_job`: the recipe that came with it, from the start
or from the run's newest checkpoint.

So that a run whose head was lost goes on when it is submitted again: all that it needs is in its folder, and, if that
was lost as well, behind `checkpoint.remote`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

PLACE = Path(".trestle-job")
"""The folder in a job's package with what was submitted."""
RECIPE = PLACE / "recipe.yaml"
SUBMISSION = PLACE / "submission.json"
RESUME_ME = 75


class _Stopped(BaseException):
    """SIGTERM before any rank was started: nothing is lost, and what was saved before is there.

    No `Exception`, since it may come in the middle of any import, and some of those try things.
    """


def main() -> int:
    """Train; the exit code is also in the last line that is printed, where `trestle stop` finds it."""
    submission = json.loads(SUBMISSION.read_text())
    try:
        signal.signal(signal.SIGTERM, _stop)  # until the supervisor takes it; imports take seconds
        code = _train(submission)
        signal.signal(signal.SIGTERM, lambda *_: None)
    except _Stopped as stopped:
        signal.signal(signal.SIGTERM, lambda *_: None)
        print(f"trestle: {stopped}", file=sys.stderr, flush=True)
        code = RESUME_ME
    from cluster.jobs import closing_line

    newest = max((Path(submission["folder"]) / "checkpoints").glob("step-????????"), default=None)
    print(closing_line(code, checkpoint=None if newest is None else str(newest)), flush=True)
    return code


def _train(submission: dict[str, Any]) -> int:
    from launcher.cli import in_one_line
    from launcher.run_folder import RunFolder

    return in_one_line(lambda: train(RunFolder(Path(submission["folder"])), submission))


def train(folder: Any, submission: dict[str, Any]) -> int:
    """Begin the run or go on with it, on the cluster that this job runs on; the exit code."""
    from launcher.job import load_job
    from launcher.supervise import supervise
    from training.metrics.events import PatientEventLog

    job = load_job(RECIPE, [f"--cluster.address={os.environ['RAY_ADDRESS']}"])
    make_ready(folder, job)
    PatientEventLog(folder.events).write("submitted", **submission)
    return supervise(folder, job)


def make_ready(folder: Any, job: Any) -> None:
    """Make the run's folder, or make it ready to be continued; a lost one is made again from `checkpoint.remote`.

    Raises what `launcher.train.begin`, `launcher.resume.go_on` and `launcher.remote_run.fetch_run` raise.
    """
    from launcher import changes, resume
    from launcher.job import load_job
    from launcher.remote_run import begun_elsewhere, fetch_run
    from launcher.train import begin

    if not folder.has_checkpoints():
        elsewhere = begun_elsewhere(job.recipe)
        if elsewhere is None:
            job.check()
            begin(job)
            return
        fetch_run(elsewhere, [f"--run.directory={folder.path.parent}"])
    before = load_job(folder.path)
    if job.recipe.model.vocab_size is None:  # what was left open then has been decided by the shards
        job.recipe.model.vocab_size = before.recipe.model.vocab_size
    resume.go_on(folder, job, changes.changes(before.document(), job.document()))


def _stop(*_: object) -> None:
    raise _Stopped("stopped before the ranks had started; submit it again to continue")


if __name__ == "__main__":
    sys.exit(main())
