"""Versions of what Trestle stands on, and those that are known not to work, alone or together."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from launcher.doctor.findings import Finding, Status

SECTION = "versions"
OWN = "trestle-train"
SHOWN = ("torch", "megatron-core", "deepspeed", "ray", "numpy")


@dataclass(frozen=True)
class KnownBad:
    """Versions that must not be used (together): every package in `packages` within its range."""

    packages: Mapping[str, str]
    reason: str
    mend: str
    status: Status = Status.FAIL


KNOWN_BAD = (
    KnownBad({"python": "<3.11"}, "Trestle is written for Python 3.11 and 3.12", "make PYTHON=python3.11 setup"),
    KnownBad({"python": ">=3.13"}, "the pinned versions have no wheels for it", "make PYTHON=python3.12 setup"),
    KnownBad(
        {"megatron-core": ">=0.17", "python": "<3.12"},
        "megatron-core 0.16.1 is the last for Python 3.11",
        "pip install 'megatron-core==0.16.1'",
    ),
    KnownBad(
        {"megatron-core": ">=0.17"},
        "modeling.megatron_bridge is written against the internals of 0.16.1; from 0.18 on importing it reaches triton",
        "pip install 'megatron-core==0.16.1'",
    ),
    KnownBad(
        {"deepspeed": "<0.19.3"},
        "gradients are mis-scaled under pipelines (DeepSpeed#7773, #8152), and nothing says so",
        "DS_BUILD_OPS=0 pip install --no-build-isolation 'deepspeed==0.19.8'",
    ),
    KnownBad(
        {"deepspeed": ">=0.19.3,<0.19.8"},
        "training.engine.deepspeed_bridge is written against 0.19.8",
        "DS_BUILD_OPS=0 pip install --no-build-isolation 'deepspeed==0.19.8'",
        Status.WARN,
    ),
    KnownBad(
        {"ray": "<2.60"},
        "cluster.local is written against 2.60; old Rays run whatever anybody sends them (CVE-2023-48022)",
        "pip install 'ray[default]==2.60.0'",
    ),
    KnownBad({"ray": ">=2.61"}, "cluster.local is written against 2.60", "pip install 'ray[default]==2.60.0'"),
    KnownBad(
        {"torch": "<2.13"},
        "hang reports read the flight recorder of 2.13, and the layers compile whole only from there on",
        "pip install 'torch==2.13.0'",
    ),
    KnownBad(
        {"torch": ">=2.14", "deepspeed": "<0.20"},
        "deepspeed 0.19 has not been tried with it",
        "pip install 'torch==2.13.0'",
        Status.WARN,
    ),
    KnownBad({"numpy": "<2"}, "torch 2.13 and numba are built for numpy 2", "pip install 'numpy>=2'"),
    KnownBad({"jsonargparse": ">=5"}, "its parser changed", "pip install 'jsonargparse<5'"),
    KnownBad(
        {"webdataset": "<1.0.2"}, "members are unpickled while reading", "pip install 'webdataset>=1.0.2'", Status.WARN
    ),
)


def installed() -> dict[str, str]:
    """Versions by name, of Python and of everything that Trestle requires; packages that are missing are left out."""
    versions = {"python": platform.python_version()}
    judged = {name for bad in KNOWN_BAD for name in bad.packages if name != "python"}
    for name in {*SHOWN, *judged, *(requirement.name for requirement in requirements())}:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def requirements() -> list[Requirement]:
    """What this installation of Trestle says that it requires; [] where it is not installed as a package."""
    try:
        texts = metadata.requires(OWN) or []
    except metadata.PackageNotFoundError:
        return []
    parsed = [Requirement(text) for text in texts]
    return [one for one in parsed if one.marker is None or one.marker.evaluate({"extra": ""})]


def check_versions(versions: Mapping[str, str], required: list[Requirement]) -> list[Finding]:
    """One line of what there is, then one for each that is missing, known to be bad, or outside the tested range."""
    shown = ", ".join(f"{name} {versions[name]}" for name in ("python", *SHOWN) if name in versions)
    findings = []
    told: set[str] = set()
    for bad in KNOWN_BAD:
        if all(name in versions and within(versions[name], range_) for name, range_ in bad.packages.items()):
            pair = " with ".join(f"{name} {versions[name]}" for name in bad.packages)
            first = next(iter(bad.packages))
            if first not in told:
                findings.append(Finding(SECTION, first, bad.status, f"{pair}: {bad.reason}", bad.mend))
            told |= set(bad.packages)
    for one in required:
        if one.name in told:
            continue
        version = versions.get(one.name)
        mend = f"pip install --constraint constraints.txt '{one.name}{one.specifier}'"
        if version is None:
            findings.append(Finding(SECTION, one.name, Status.FAIL, "is not installed", mend))
        elif not within(version, str(one.specifier)):
            words = f"{version} is outside {one.specifier}, which can work"
            findings.append(Finding(SECTION, one.name, Status.WARN, words, mend))
    if not findings:
        shown += f", and {len(required)} requirements in their tested ranges" if required else ""
    return [Finding(SECTION, "packages", Status.OK, shown), *findings]


def within(version: str, specifier: str) -> bool:
    """Whether a version lies in a range; a local part such as +cu130 does not matter."""
    try:
        return SpecifierSet(specifier).contains(Version(version).public, prereleases=True)
    except InvalidVersion:
        return False
