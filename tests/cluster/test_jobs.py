"""What can be said of jobs without a head; the rest is in tests/launcher/test_submitting.py."""

from __future__ import annotations

import pytest

from cluster.jobs import ClusterJob, closing_line, job_name, read_closing_line


def test_a_runs_jobs_are_counted_and_names_are_fit_for_a_shell() -> None:
    jobs = [ClusterJob(name, "finished", 0, 1.0, 2.0) for name in ("trestle-a-1", "trestle-a-9", "trestle-a-b-11", "x")]
    assert job_name("a", jobs) == "trestle-a-10"
    assert job_name("a-b", jobs) == "trestle-a-b-12"
    assert job_name("new; rm -rf *", jobs) == "trestle-new__rm_-rf__-1"


@pytest.mark.parametrize("after", ["", "\n", "\nTerminated\n"])
def test_the_last_closing_line_of_a_jobs_output_counts(after: str) -> None:
    text = f"step 1\n{closing_line(1)}\nstep 2\n{closing_line(75, checkpoint='/r/step-00000002')}{after}"
    assert read_closing_line(text) == {"exit_code": 75, "checkpoint": "/r/step-00000002"}


@pytest.mark.parametrize(
    "text", ["", "step 1", "trestle job ended: ", "trestle job ended: []", "trestle job ended: {}"]
)
def test_output_that_was_cut_off_has_no_closing_line(text: str) -> None:
    assert read_closing_line(text) == {}
