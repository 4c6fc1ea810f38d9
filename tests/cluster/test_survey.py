"""A short command on every node of a cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cluster import ClusterConfig
from cluster.survey import _run, on_every_node
from tests.cluster.conftest import HEAD, NODES, Nodes

pytestmark = pytest.mark.timeout(300)
SCRIPT = "import os; print(sorted(n for n in os.environ if n.startswith('RAY_')), os.environ.get('OMP_NUM_THREADS'))"


def test_every_node_answers_for_itself(nodes: Nodes) -> None:
    config = ClusterConfig(address=nodes.address, node_address=HEAD)
    answers = on_every_node(["-c", SCRIPT], config, 120.0)
    assert [(answer.node, answer.output, answer.problem) for answer in answers] == [
        (node, "[] None\n", None) for node in (HEAD, *NODES)
    ]
    assert all(answer.clock_seconds is not None and abs(answer.clock_seconds) < 10.0 for answer in answers)


def test_what_hangs_fails_or_says_nothing_on_a_node_is_a_problem_in_words(tmp_path: Path) -> None:
    assert _run(["-c", "import time; time.sleep(600)"], str(tmp_path), 0.5) == ("", "it had not finished after 0.5 s")
    assert (
        _run(["-m", "no_such_module"], str(tmp_path), 120.0)[1] == f"{sys.executable}: No module named no_such_module"
    )
    assert _run(["-c", "raise SystemExit(3)"], str(tmp_path), 120.0) == ("", "exit code 3, and no output")
