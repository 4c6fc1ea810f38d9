"""What the doctor says: one finding a line, with a mend where one is needed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

COLOURS = {"ok": "\033[32m", "warn": "\033[33m", "FAIL": "\033[31m"}


class Status(StrEnum):
    """ok: works; warn: works less well, or not in every case; FAIL: training will not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the screen."""

    section: str
    name: str
    status: Status
    text: str
    mend: str = ""


def as_text(findings: Sequence[Finding], seconds: float) -> str:
    """The screen: sections with their lines, what to mend under the line that needs it, a verdict."""
    width = max(len(one.name) for one in findings)
    coloured = sys.stdout.isatty()
    lines: list[str] = []
    section = ""
    for one in findings:
        if one.section != section:
            section = one.section
            lines.append(section)
        word = f"{one.status:4}"
        if coloured:
            word = f"{COLOURS[one.status]}{word}\033[0m"
        lines.append(f"  {word}  {one.name:{width}}  {one.text}")
        if one.mend:
            lines.append(f"  {'':4}  {'':{width}}  → {one.mend}")
    return "\n".join([*lines, verdict(findings, seconds)])


def verdict(findings: Sequence[Finding], seconds: float) -> str:
    """The last line: what the exit code says."""
    # Each name once: several nodes may have the same fault.
    failed = list(dict.fromkeys(one.name for one in findings if one.status is Status.FAIL))
    warned = list(dict.fromkeys(one.name for one in findings if one.status is Status.WARN))
    took = f"({len(findings)} checks, {seconds:.0f} s)"
    if failed:
        return f"will not work until mended: {', '.join(failed)} {took}"
    warnings = f", with warnings: {', '.join(warned)}" if warned else ""
    return f"ready to train{warnings} {took}"


def as_json(findings: Sequence[Finding], seconds: float) -> dict[str, object]:
    """The same for scripts."""
    fails = any(one.status is Status.FAIL for one in findings)
    return {"ready": not fails, "seconds": round(seconds, 1), "findings": [asdict(one) for one in findings]}
