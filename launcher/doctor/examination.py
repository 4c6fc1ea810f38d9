"""All checks in order, each with a deadline; one that breaks is a finding, not the end of the others."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.listening import open_to_others
from launcher.doctor import devices, machine, ranks, ray_check, versions
from launcher.doctor.child import ChildFailed, results, start
from launcher.doctor.findings import Finding, Status

DEVICE_SECONDS, RANK_SECONDS, RAY_SECONDS = 60.0, 60.0, 180.0
"""Deadlines for a machine that is busy with something else: quiet, these take 5 s each."""


def examine(directory: Path, *, private_ray: bool = True) -> list[Finding]:
    """Every finding on this machine; runs go into `directory`. `private_ray`: start one, to see that it can be."""
    findings = _guarded(versions.SECTION, "packages", _versions)
    findings += _guarded(devices.SECTION, "devices", _devices)
    gpus = sum(one.name.startswith("cuda:") for one in findings)
    findings += _guarded(ranks.SECTION, "gloo", lambda: _ranks("gloo", 2))
    if gpus:
        findings += _guarded(ranks.SECTION, "nccl", lambda: _ranks("nccl", gpus))
    if private_ray:
        findings += _guarded(ray_check.SECTION, "private Ray", _ray)
    checks: tuple[tuple[str, Callable[[], Finding]], ...] = (
        ("cores", machine.check_cores),
        ("memory", machine.check_memory),
        ("shared memory", machine.check_shared_memory),
        ("file handles", machine.check_file_handles),
        ("clock", machine.check_clock),
        ("own name", machine.check_name),
        ("compiler", lambda: machine.check_compiler(gpus > 0)),
        ("hang reports", machine.check_stacks),
    )
    for name, check in checks:
        findings += _guarded(machine.SECTION, name, lambda check=check: [check()])  # type: ignore[misc]
    return findings + _guarded(machine.SECTION, "disk", lambda: machine.check_disk(directory))


def _guarded(section: str, name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """The findings of a check; its own breaking as one."""
    try:
        return check()
    except ChildFailed as failed:
        return [Finding(section, name, Status.FAIL, str(failed), _MENDS.get(name, ""))]
    except Exception as error:  # noqa: BLE001 too few file handles, no process left, a /proc that is not there, …
        words = f"could not be checked: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return [Finding(section, name, Status.FAIL, words, _MENDS.get(name, ""))]


_MENDS = {
    "devices": "python -m launcher.doctor.devices shows it in full",
    "gloo": ranks.MENDS["gloo"],
    "nccl": ranks.MENDS["nccl"],
    "private Ray": "python -m launcher.doctor.ray_check shows it in full",
}


def _versions() -> list[Finding]:
    return versions.check_versions(versions.installed(), versions.requirements())


def _devices() -> list[Finding]:
    child = start("launcher.doctor.devices")
    told = results([child], time.monotonic() + DEVICE_SECONDS)[0]
    by_driver = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return devices.findings_of(told, by_driver)


def _ranks(backend: str, world: int) -> list[Finding]:
    with tempfile.TemporaryDirectory(prefix="trestle-doctor-") as folder:
        meeting = str(Path(folder) / "meeting")
        words = [(backend, str(rank), str(world), meeting) for rank in range(world)]
        one_thread = {"OMP_NUM_THREADS": "1"}
        children = [start("launcher.doctor.ranks", *word, environment=one_thread) for word in words]
        told: list[dict[str, Any]] = [one[0] for one in results(children, time.monotonic() + RANK_SECONDS)]
    return [ranks.finding_of(backend, told)]


def _ray() -> list[Finding]:
    open_ports = ray_check.check_open_ports(open_to_others())
    child = start("launcher.doctor.ray_check")
    told = results([child], time.monotonic() + RAY_SECONDS)[0][0]
    found = [ray_check.finding_of(told)]
    return found if open_ports is None else [*found, open_ports]
