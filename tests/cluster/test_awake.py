"""Deadlines of others do not pass while this process stands still."""

from __future__ import annotations

import socket

from cluster.awake import AwakeClock
from cluster.head import Head


class Now:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_a_pause_counts_as_one_look() -> None:
    now = Now()
    clock = AwakeClock(5.0, now)
    now.seconds += 3
    assert clock.look() == 3.0
    now.seconds += 3600
    assert clock.look() == 8.0
    assert clock.look() == 8.0


def test_a_head_is_silent_only_while_somebody_tries_and_fails() -> None:
    now = Now()
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = Head(f"127.0.0.1:{server.getsockname()[1]}", now)
        now.seconds += 1
        head._greet()
        now.seconds += 3600
        assert head.silent_seconds == 0.0, "nobody has tried"
        head._greet()
        assert head.silent_seconds == 0.0
    for tries in range(1, 4):
        now.seconds += 1
        head._greet()
        assert head.silent_seconds == tries
    now.seconds += 3600
    head._greet()
    assert head.silent_seconds < 10.0, "a pause is not a silence"
