"""`trestle doctor` as a user calls it, and on machines that are worse than this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.survey import Answer
from launcher.doctor import devices, machine, ranks, ray_check
from launcher.doctor.child import ChildFailed, results, start
from launcher.doctor.findings import Finding, Status, as_text
from launcher.doctor.nodes import findings_of
from launcher.doctor.versions import check_versions, installed, requirements

ROOT = Path(__file__).parents[2]


def words_of(findings: list[Finding]) -> str:
    return as_text(findings, 1.0)


@pytest.mark.timeout(660)
def test_a_known_bad_version_is_told_and_everything_else_is_measured(tmp_path: Path) -> None:
    """The whole doctor on this machine, with an old DeepSpeed in front of the one that is installed."""
    planted = tmp_path / "planted" / "deepspeed-0.18.2.dist-info"
    planted.mkdir(parents=True)
    (planted / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.18.2\n")
    mark = f"TRESTLE_TEST_MARK=doctor-{os.getpid()}"
    environment = {**os.environ, "PYTHONPATH": f"{planted.parent}:{ROOT}", mark.partition("=")[0]: mark[18:]}
    command = [sys.executable, "-m", "launcher", "doctor", str(tmp_path / "runs"), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    told = json.loads(done.stdout)
    found = {one["name"]: one for one in told["findings"]}
    assert done.returncode == 1 and told["ready"] is False, done.stderr
    assert [name for name, one in found.items() if one["status"] == "FAIL"] == ["deepspeed"], found
    assert "mis-scaled under pipelines" in found["deepspeed"]["text"]
    assert "deepspeed==0.19.8" in found["deepspeed"]["mend"]
    assert "matrix product float32" in found["cpu"]["text"] and "GB/s" in found["cpu"]["text"]
    assert found["gloo"]["text"].startswith("all_reduce over 2 ranks")
    assert "on loopback" in found["private Ray"]["text"]
    assert not (tmp_path / "runs").exists() and list(tmp_path.glob(".trestle*")) == []
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                left.append((process / "cmdline").read_bytes())
        except OSError:
            continue
    assert left == []


def test_what_is_installed_here_is_known_to_work() -> None:
    findings = check_versions(installed(), requirements())
    assert [one.status for one in findings] == [Status.OK], words_of(findings)


def test_bad_pairs_missing_packages_and_untried_versions_are_told_each_once() -> None:
    healthy = installed()
    old_python = check_versions({**healthy, "megatron-core": "0.18.0", "python": "3.11.9"}, requirements())
    assert [one.name for one in old_python if one.status is Status.FAIL] == ["megatron-core"]
    assert "the last for Python 3.11" in words_of(old_python)
    cuda = check_versions({**healthy, "torch": "2.13.0+cu130"}, requirements())
    assert [one.status for one in cuda] == [Status.OK]
    bare = check_versions({name: v for name, v in healthy.items() if name != "pyarrow"}, requirements())
    assert [(one.name, one.status) for one in bare[1:]] == [("pyarrow", Status.FAIL)] or not requirements()


def test_few_file_handles_are_told_with_how_many_there_may_be(tmp_path: Path) -> None:
    script = "from launcher.doctor import machine; a = machine.check_file_handles(); print(a.status, a.text, a.mend)"
    for limit, word in ((64, "FAIL"), (1024, "warn")):
        command = ["bash", "-c", f"ulimit -Sn {limit} && ulimit -Hn 1024 && exec {sys.executable} -c '{script}'"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
        assert done.stdout.startswith(f"{word} {limit:,} a process (ulimit -n), may be raised to 1,024")
        assert "raise the hard limit" in done.stdout


def test_a_small_a_slow_and_an_unwritable_disk_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "not" / "there" / "yet"
    assert machine.check_disk(runs, least=1, enough=1)[0].status in (Status.OK, Status.WARN)
    small = machine.check_disk(runs, least=1 << 60)[0]
    assert small.status is Status.FAIL and "free" in small.text and "--run.directory" in small.mend
    assert machine.check_disk(runs, least=1, enough=1 << 60)[0].status is Status.WARN
    monkeypatch.setattr(machine, "SLOW_DISK", 1e15)
    assert "use a faster disk" in machine.check_disk(runs, least=1, enough=1)[0].mend
    closed = machine.check_disk(Path("/proc/runs"))[0]
    assert closed.status is Status.FAIL and "cannot be written" in closed.text
    assert list(tmp_path.iterdir()) == []


def test_little_memory_and_a_wrong_clock_are_told(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    assert machine.check_memory(tmp_path).status is Status.OK
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(str(2**30))
    small = machine.check_memory(tmp_path)
    assert small.status is Status.FAIL and "cgroup limit 1.0 GiB" in small.text and "docker run --memory" in small.mend
    assert machine.check_clock(now=0.0).status is Status.FAIL
    assert machine.check_clock().status is not Status.FAIL
    assert machine.check_shared_memory("/no/such/place").status is Status.FAIL


BUILD = {"cuda": None, "available": False, "nccl": None, "gloo": True}
GPU: dict[str, Any] = {
    **{"device": "cuda:1", "name": "H200", "free": 140e9, "total": 150e9, "bytes_per_second": 4e12},
    **{"flops": {"float32": 5e13, "bfloat16": 7e14}, "errors": {"float32": 1e-6, "bfloat16": 2e-3}},
}


def test_gpus_that_torch_cannot_use_or_that_calculate_wrongly_are_told() -> None:
    assert [one.status for one in devices.findings_of([BUILD], 0)] == [Status.OK]
    assert "built for the CPU, and there are 2 GPUs" in words_of(devices.findings_of([BUILD], 2))
    assert "update the driver" in words_of(devices.findings_of([{**BUILD, "cuda": "13.0"}], 2))
    usable = {"cuda": "13.0", "available": True, "nccl": "2.29.3", "gloo": True}
    healthy = words_of(devices.findings_of([usable, {**GPU, "from_first": 3e11}], 2))
    assert "bfloat16 700 TFLOP/s" in healthy and "from cuda:0 300 GB/s" in healthy and "ready to train" in healthy
    wrong = devices.findings_of([usable, {**GPU, "errors": {"float32": float("nan"), "bfloat16": 0.5}}], 2)[1]
    assert wrong.status is Status.FAIL and "WRONG RESULTS: float32 off by nan, bfloat16 off by 5.0e-01" in wrong.text
    taken = devices.findings_of([usable, {**GPU, "free": 10e9}], 2)[1]
    assert taken.status is Status.WARN and "nvidia-smi" in taken.mend


def test_sums_that_are_wrong_and_a_ray_that_others_can_reach_are_told() -> None:
    assert ranks.finding_of("gloo", [{"right": False, "bytes_per_second": 1e9}]).status is Status.FAIL
    assert ranks.finding_of("nccl", [{"right": True, "bytes_per_second": 1e6}]).status is Status.WARN
    outside = {"seconds": 1.0, "sockets": 7, "outside": ["0.0.0.0:6379"]}
    assert ray_check.finding_of(outside).status is Status.FAIL
    assert ray_check.check_open_ports({22, 8265}) is not None and ray_check.check_open_ports({22}) is None


def test_a_check_that_never_ends_is_ended_and_said(tmp_path: Path) -> None:
    child = start("http.server", "--bind", "127.0.0.1", "0")
    with pytest.raises(ChildFailed, match="had not finished in time"):
        results([child], time.monotonic() + 0.5)
    assert child.returncode is not None
    with pytest.raises(ChildFailed, match="No module named"):
        results([start("launcher.no_such_module")], time.monotonic() + 120)


def test_nodes_that_differ_are_told_by_name() -> None:
    def answer(node: str, torch: str, clock: float) -> Answer:
        found = [{"section": "versions", "name": "packages", "status": "ok", "text": f"torch {torch}", "mend": ""}]
        return Answer(node, json.dumps({"findings": found}), None, clock)

    alike = findings_of([answer("10.0.0.1", "2.13.0", 0.01), answer("10.0.0.2", "2.13.0", -0.02)])
    assert {one.status for one in alike} == {Status.OK} and "agree within 0.02 s" in words_of(alike)
    answers = [answer("10.0.0.1", "2.13.0", 0.0), answer("10.0.0.2", "2.13.0", 7.0), answer("10.0.0.3", "2.12.0", 0.0)]
    broken = [Answer("10.0.0.4", "", "No module named launcher", None), Answer("10.0.0.5", "hello", None, 0.0)]
    told = words_of(findings_of([*answers, *broken]))
    assert "10.0.0.2 by +7.0 s" in told and "differ on 10.0.0.3 from the other nodes" in told
    assert "No module named launcher" in told and "has answered 'hello'" in told
