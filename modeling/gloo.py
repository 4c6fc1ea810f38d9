"""One thread for the sockets of all gloo groups of a process, instead of one for each group.

Each gloo device has a thread that wakes up a hundred times a second, and torch makes a device for every group: with the
dozen groups of a layout that costs 2 % of a core, whether anything is sent or not. Groups may share a device.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, ClassVar

from torch.distributed import ProcessGroupGloo, distributed_c10d

_GLOO: Any = ProcessGroupGloo


class _OnSharedDevice(ProcessGroupGloo):
    """On the devices of the first group of this process, which torch chose (GLOO_SOCKET_IFNAME and so on)."""

    _of_process: ClassVar[dict[int, list[Any]]] = {}  # a fork does not have the thread of its parent's

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        devices = self._of_process.get(os.getpid())
        if devices is None:
            super().__init__(store, rank, size, timeout)
            own: Any = self.options  # torch's stubs name these otherwise than its library
            self._of_process[os.getpid()] = list(own._devices)
            return
        options: Any = _GLOO._Options()
        options._devices, options._timeout = devices, timeout
        options._threads = 2 * len(devices)  # as torch has it
        super().__init__(store, rank, size, options)


def share_device() -> None:
    """From here on this process's gloo groups share one device. Idempotent."""
    distributed_c10d.ProcessGroupGloo = _OnSharedDevice  # type: ignore[misc]
