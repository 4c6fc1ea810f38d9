"""Whether Ray's head is alive, and which nodes are to go away: asked beside the run, which must not wait for it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from cluster.local import draining_nodes

ASK_SECONDS = 1.0
CONNECT_SECONDS = 5.0


class Head:
    """Two threads that ask the head at `address`, while the context is open: a call to a dead head blocks for a minute,
    after which Ray ends the calling process.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._address = (host.strip("[]"), int(port))
        self._alive_at = time.monotonic()
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

    @property
    def silent_seconds(self) -> float:
        """How long nothing has accepted a connection there."""
        return time.monotonic() - self._alive_at

    def _every_second(self, what: Callable[[], None]) -> None:
        while not self._closed.wait(ASK_SECONDS):
            what()

    def _greet(self) -> None:
        with suppress(OSError), socket.create_connection(self._address, CONNECT_SECONDS):
            self._alive_at = time.monotonic()

    def _ask(self) -> None:
        if self.silent_seconds < 2 * ASK_SECONDS:
            with suppress(Exception):  # whatever Ray raises about a head that is going: `silent_seconds` will tell
                self.draining = frozenset(draining_nodes())
