"""Which addresses processes listen on, from /proc."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cluster.leftovers import Process

LISTEN = "0A"  # include/net/tcp_states.h
LOOPBACK = ("127.", "::1")


def listening(processes: Iterable[Process]) -> list[tuple[str, int]]:
    """(address, port) of every TCP socket on which one of these processes listens, as far as they can be seen."""
    inodes = set()
    for process in processes:
        with suppress(OSError):
            for descriptor in os.scandir(f"/proc/{process.pid}/fd"):
                with suppress(OSError):
                    target = os.readlink(descriptor.path)
                    if target.startswith("socket:["):
                        inodes.add(target[8:-1])
    return [(address, port) for address, port, inode in _sockets() if inode in inodes]


def open_to_others() -> set[int]:
    """Ports on which anything on this machine listens on other addresses than loopback."""
    return {port for address, port, _ in _sockets() if not address.startswith(LOOPBACK)}


def _sockets() -> list[tuple[str, int, str]]:
    """(address, port, inode) of every listening TCP socket in this network namespace."""
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTEN:
                    address, port = fields[1].split(":")
                    words = b"".join(bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8))
                    found.append((socket.inet_ntop(family, words).removeprefix("::ffff:"), int(port, 16), fields[9]))
    return found
