"""The launches of the other tests: forked ranks draw apart, and none outlives its deadline."""

from __future__ import annotations

import random
import socket
import subprocess
import sys

import numpy

from tests.distributed.forks import _watch
from tests.distributed.launch import run


def look(_: None) -> list[float]:
    """What chance gives a rank."""
    return [random.random(), numpy.random.rand()]


def test_forked_ranks_draw_numbers_of_their_own() -> None:
    first, second = run("tests.distributed.test_forks:look", 2, None, deadline=100)
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_a_rank_that_has_not_made_its_session_yet_is_killed_like_any_other() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as rank:
        try:
            assert _watch([rank.pid], 0.0, ours) == 0
            assert rank.poll() is not None
        finally:
            rank.kill()
