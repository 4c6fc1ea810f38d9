"""What a submitted job runs on the cluster, `python -m launcher.in_job`: the recipe that came with it, from the start
or from the run's newest checkpoint.

So that a run whose head was lost goes on when it is submitted again: all that it needs is in its folder.
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


class _Stopped(Exception):
    """SIGTERM before any rank was started: nothing is lost, and what was saved before is there."""

    exit_code = RESUME_ME


def main() -> int:
    """Train; the exit code is also in the last line that is printed, where `trestle stop` finds it."""
    signal.signal(signal.SIGTERM, _stop)  # until the supervisor takes it; imports take seconds
    from cluster.jobs import closing_line
    from launcher.cli import in_one_line
    from launcher.run_folder import RunFolder

    submission = json.loads(SUBMISSION.read_text())
    folder = RunFolder(Path(submission["folder"]))
    code = in_one_line(lambda: train(folder, submission))
    newest = max(folder.checkpoints.glob("step-????????"), default=None)
    print(closing_line(code, checkpoint=None if newest is None else str(newest)), flush=True)
    return code


def train(folder: Any, submission: dict[str, Any]) -> int:
    """Begin the run or go on with it, on the cluster that this job runs on; the exit code."""
    from launcher import changes, resume
    from launcher.job import load_job
    from launcher.supervise import supervise
    from launcher.train import begin
    from training.metrics.events import PatientEventLog

    job = load_job(RECIPE, [f"--cluster.address={os.environ['RAY_ADDRESS']}"])
    if folder.has_checkpoints():
        before = load_job(folder.path)
        if job.recipe.model.vocab_size is None:  # what was left open then has been decided by the shards
            job.recipe.model.vocab_size = before.recipe.model.vocab_size
        resume.go_on(folder, job, changes.changes(before.document(), job.document()))
    else:
        job.check()
        begin(job)
    PatientEventLog(folder.events).write("submitted", **submission)
    return supervise(folder, job)


def _stop(*_: object) -> None:
    raise _Stopped("stopped before the ranks had started; submit it again to continue")


if __name__ == "__main__":
    sys.exit(main())
