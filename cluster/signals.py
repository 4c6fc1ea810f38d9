"""SIGTERM, SIGHUP and Ctrl-C as requests that a supervisor asks about between two waits."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequests:
    """The first signal asks for a graceful stop; a second Ctrl-C raises KeyboardInterrupt where the program stands.

    Signals can only be caught by the main thread; elsewhere this watches nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._former: dict[signal.Signals, Any] = {}
        self._shielded = False

    def __enter__(self) -> StopRequests:
        self.catch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def catch(self) -> None:
        """Take the signals over; to be called again after anything that took them (ray.init takes SIGTERM)."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in WATCHED:
            former = signal.signal(number, self._handle)
            self._former.setdefault(number, former)
        if self._former[signal.SIGHUP] == signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def shield(self) -> None:
        """From now on no signal interrupts: what follows is a clean-up that bounds its own time."""
        self._shielded = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
        elif number == signal.SIGINT and not self._shielded:
            raise KeyboardInterrupt
