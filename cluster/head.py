"""Whether Ray's head is alive, and which nodes are to go away: asked beside the run, which must not wait for it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from cluster.awake import AwakeClock
from cluster.local import draining_nodes

ASK_SECONDS = 1.0
CONNECT_SECONDS = 5.0


class Head:
    """Two threads that ask the head at `address`, while the context is open: a call to a dead head blocks for a minute,
    after which Ray ends the calling process.
    """

    def __init__(self, address: str, now: Callable[[], float] = time.monotonic) -> None:
        host, _, port = address.rpartition(":")
        self._address = (host.strip("[]"), int(port))
        self._clock = AwakeClock(ASK_SECONDS + CONNECT_SECONDS, now)
        self._alive_at = 0.0
        self.silent_seconds = 0.0
        """How long every try to connect there has failed. Time in which nobody tried counts for nothing."""
        self._closed = threading.Event()
        self.draining: frozenset[str] = frozenset()
        """Ray's names of the nodes that are to go away."""

    def __enter__(self) -> Head:
        for what in (self._greet, self._ask):
            threading.Thread(target=self._every_second, args=(what,), name=f"head {what.__name__}", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()

    def _every_second(self, what: Callable[[], None]) -> None:
        while not self._closed.wait(ASK_SECONDS):
            what()

    def _greet(self) -> None:
        try:
            socket.create_connection(self._address, CONNECT_SECONDS).close()
        except OSError:
            self.silent_seconds = self._clock.look() - self._alive_at
        else:
            self._alive_at, self.silent_seconds = self._clock.look(), 0.0

    def _ask(self) -> None:
        if self.silent_seconds == 0.0:
            with suppress(Exception):  # whatever Ray raises about a head that is going: `silent_seconds` will tell
                self.draining = frozenset(draining_nodes())
