"""The same examination on every node of a running cluster, and what differs between them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cluster.config import ClusterConfig
from cluster.survey import Answer, on_every_node
from launcher.doctor.findings import Finding, Status

NODE_SECONDS = 200.0
"""For one node's examination: the sum of its deadlines; quiet, it takes 15 s."""
CLOCK_SECONDS = 1.0
SECTION = "between nodes"


def examine_nodes(directory: Path, address: str, node_address: str | None) -> list[Finding]:
    """Every node's findings, each in a section of its own, then what differs. Raises `ClusterError`, `UserError`."""
    config = ClusterConfig(address=address, node_address=node_address)
    config.check(1)
    words = ["-m", "launcher", "doctor", str(directory), "--json", "--without-ray"]
    return findings_of(on_every_node(words, config, NODE_SECONDS))


def findings_of(answers: Sequence[Answer]) -> list[Finding]:
    """The screen's lines of what the nodes' doctors have printed."""
    findings: list[Finding] = []
    packages: dict[str, str] = {}
    for answer in answers:
        section = f"node {answer.node}"
        mine = _parse(answer, section)
        findings += mine
        for one in mine:
            if one.name == "packages":
                packages[answer.node] = one.text
    return findings + _clocks(answers) + _versions(packages)


def _parse(answer: Answer, section: str) -> list[Finding]:
    mend = "the code and its environment must lie at the same place on every node: try `trestle doctor` there"
    if answer.problem is not None:
        return [Finding(section, "doctor", Status.FAIL, answer.problem, mend)]
    try:
        told = json.loads(answer.output)["findings"]
        return [Finding(section, f["name"], Status(f["status"]), f["text"], f["mend"]) for f in told]
    except (ValueError, KeyError, TypeError):
        return [Finding(section, "doctor", Status.FAIL, f"has answered {answer.output.strip()[:100]!r}", mend)]


def _clocks(answers: Sequence[Answer]) -> list[Finding]:
    ahead = {answer.node: answer.clock_seconds for answer in answers if answer.clock_seconds is not None}
    if not ahead:
        return []
    off = [f"{node} by {seconds:+.1f} s" for node, seconds in ahead.items() if abs(seconds) > CLOCK_SECONDS]
    if off:
        mend = "set all clocks by NTP: chrony or systemd-timesyncd"
        return [Finding(SECTION, "clocks", Status.WARN, f"differ from this machine's: {', '.join(off)}", mend)]
    return [Finding(SECTION, "clocks", Status.OK, f"agree within {max(map(abs, ahead.values())):.2f} s")]


def _versions(packages: dict[str, str]) -> list[Finding]:
    counts = Counter(packages.values())
    if len(counts) < 2:
        words = f"the same packages on {len(packages)} node{'' if len(packages) == 1 else 's'}"
        return [Finding(SECTION, "packages", Status.OK, words)] if packages else []
    usual, _ = counts.most_common(1)[0]
    others = ", ".join(node for node, text in packages.items() if text != usual)
    mend = "install the same constraints.txt everywhere: ranks of different versions do not understand each other"
    return [Finding(SECTION, "packages", Status.FAIL, f"differ on {others} from the other nodes", mend)]
