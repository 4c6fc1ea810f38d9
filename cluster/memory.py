"""How much memory is free and who holds how much; and whether the kernel killed a process because it ran out, by the
counters that it keeps: no look at its log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

ROOT = Path("/")
LOOK_SECONDS = 1.0
FRESH_SECONDS = 30.0
"""A kill explains an end that is seen so much later at most: a large process takes seconds to give its memory back."""
UNLIMITED = 1 << 60
"""Limits from here on are none: cgroup v1 writes the largest multiple of a page."""

_ACCOUNTS = (
    ("memory.max", "memory.current", "inactive_file"),  # version 2
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
)


class OomKills:
    """The processes of this process's cgroup that the out-of-memory killer has ended since this was made.

    Not all of them are ranks: what is older than `FRESH_SECONDS`, or known to be another's end, explains no rank's.
    """

    def __init__(self, root: Path = ROOT, now: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._now = now
        self._seen = _count(root)
        self._fresh: list[float] = []  # when the kills were noticed that have explained nothing yet
        self._looked_at = now()

    def look(self) -> None:
        """Note what has happened; to be called often. It reads the counter once in `LOOK_SECONDS`."""
        if self._now() - self._looked_at >= LOOK_SECONDS:
            self._read()

    def of_one_killed(self) -> str | None:
        """Which memory ran out, if the counter has risen: `cgroup memory limit 8.0 GiB`. One kill explains one process.

        None where it has not, or there is no counter.
        """
        self._read()
        if not self._fresh:
            return None
        self._fresh.pop(0)
        limit = memory_limit(self._root)
        if limit is not None:
            return f"cgroup memory limit {_gib(limit)}"
        return f"the machine's memory of {_gib(machine_memory(self._root))} ran out"

    def _read(self) -> None:
        count, self._looked_at = _count(self._root), self._now()
        self._fresh = [at for at in self._fresh if self._looked_at - at <= FRESH_SECONDS]
        if count is None or self._seen is None:
            return
        self._fresh += [self._looked_at] * (count - self._seen)
        self._seen = count


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes: the smallest limit of this process's memory cgroup and those above it; None where none is set."""
    limits = []
    for folder in _cgroup(root):
        for name in ("memory.max", "memory.limit_in_bytes"):  # version 2, version 1
            with suppress(OSError, ValueError):
                limits.append(int((folder / name).read_text()))
    return min((limit for limit in limits if limit < UNLIMITED), default=None)


def machine_memory(root: Path = ROOT) -> int:
    """Bytes of this machine; 0 where it is not told."""
    return 1024 * (_field(root / "proc/meminfo", "MemTotal:") or 0)


def available_memory(root: Path = ROOT) -> int:
    """Bytes that can be had without swapping: the machine's, or what a memory cgroup leaves where that is less.

    `root` is where /proc and /sys are.
    """
    available = 1024 * (_field(root / "proc/meminfo", "MemAvailable:") or 0)
    for folder in _cgroup(root):
        for limit, usage, cache in _ACCOUNTS:
            with suppress(OSError, ValueError):
                left = int((folder / limit).read_text()) - int((folder / usage).read_text())
                cached = _field(folder / "memory.stat", cache) or 0  # given up before anyone is killed
                available = min(available, max(0, left + cached))
    return available


def memory_of(pids: Iterable[int]) -> int:
    """Bytes of memory that are these processes' own: anonymous and shared, without the files that they map."""
    held = 0
    for pid in pids:
        status = Path(f"/proc/{pid}/status")
        held += 1024 * sum(_field(status, name) or 0 for name in ("RssAnon:", "RssShmem:"))
    return held


def _count(root: Path) -> int | None:
    for folder in _cgroup(root):
        for name in ("memory.events", "memory.oom_control"):  # version 2, version 1
            count = _field(folder / name, "oom_kill")
            if count is not None:
                return count
    return _field(root / "proc/vmstat", "oom_kill")  # outside any cgroup: those of the whole machine


def _cgroup(root: Path) -> list[Path]:
    """The folders of this process's memory cgroup, its own first, then those above, as far as they can be seen."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                return _upwards(root / "sys/fs/cgroup/memory", path)
        return _upwards(root / "sys/fs/cgroup", path)
    return []


def _upwards(mount: Path, path: str) -> list[Path]:
    # In a container the path may be the host's, of which only the mount's own folder can be seen.
    below = mount / path.lstrip("/")
    chain = [below, *below.parents]
    return [folder for folder in chain if folder == mount or mount in folder.parents]


def _field(path: Path, name: str) -> int | None:
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            words = line.split()
            if len(words) >= 2 and words[0] == name:
                return int(words[1])
    return None


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
