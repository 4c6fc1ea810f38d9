"""Kills for want of memory, told from the kernel's counters: the files of both cgroup versions, written by the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.memory import FRESH_SECONDS, LOOK_SECONDS, OomKills, memory_limit

EVENTS = "low 0\nhigh 0\nmax 12\noom {n}\noom_kill {n}\noom_group_kill 0\n"


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    files = {"proc/self/cgroup": cgroup, "proc/meminfo": "MemTotal:       24576000 kB\n", **files}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "counter", "limit", "words"),
    [
        ("0::/job/rank\n", "sys/fs/cgroup/job/rank/memory.events", "sys/fs/cgroup/job/memory.max", "cgroup memory"),
        ("0::/not/ours\n", "sys/fs/cgroup/memory.events", "sys/fs/cgroup/memory.max", "cgroup memory limit 8.0 GiB"),
        (
            "5:devices:/\n4:memory:/docker/abc\n0::/\n",
            "sys/fs/cgroup/memory/docker/abc/memory.oom_control",
            "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes",
            "cgroup memory limit 8.0 GiB",
        ),
        ("0::/\n", "proc/vmstat", "nowhere", "the machine's memory of 23.4 GiB ran out"),
    ],
)
def test_a_counter_that_has_risen_names_the_memory(
    tmp_path: Path, cgroup: str, counter: str, limit: str, words: str
) -> None:
    root = machine(tmp_path, cgroup, {counter: EVENTS.format(n=3), limit: str(8 * 2**30)})
    kills = OomKills(root)
    assert kills.of_one_killed() is None
    (root / counter).write_text(EVENTS.format(n=5))
    assert str(kills.of_one_killed()).startswith(words)
    assert kills.of_one_killed() is not None  # the second of two
    assert kills.of_one_killed() is None


def test_a_kill_of_long_ago_explains_no_end_of_today(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n", {"proc/vmstat": EVENTS.format(n=3)})
    now = [100.0]
    kills = OomKills(root, lambda: now[0])
    (root / "proc/vmstat").write_text(EVENTS.format(n=4))
    now[0] += LOOK_SECONDS
    kills.look()
    now[0] += FRESH_SECONDS - 1  # a large process takes its time to end
    kills.look()
    assert kills.of_one_killed() is not None
    (root / "proc/vmstat").write_text(EVENTS.format(n=5))
    now[0] += LOOK_SECONDS
    kills.look()
    now[0] += FRESH_SECONDS + 1
    assert kills.of_one_killed() is None


def test_the_smallest_limit_on_the_way_up_counts_and_none_is_none(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/a/memory.max": "3000", "sys/fs/cgroup/a/b/memory.max": "max"}
    assert memory_limit(machine(tmp_path, "0::/a/b\n", files)) == 3000
    v1 = machine(tmp_path / "v1", "4:memory:/\n", {"sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096)})
    assert memory_limit(v1) is None


def test_no_counter_means_no_verdict(tmp_path: Path) -> None:
    assert OomKills(machine(tmp_path, "0::/\n", {})).of_one_killed() is None
