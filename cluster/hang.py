"""A run that hangs: ask every rank where it is, name the culprit, and leave a report in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cluster.attempt import Attempt
from cluster.diagnosis import Failure, RankState, culprit_of_hang
from cluster.evidence import Evidence

SECONDS = 5.0
"""How long a report may take, and so how much later than without one a run that hangs is started again, at most."""


def hang_report(attempt: Attempt, number: int, log_directory: Path) -> tuple[Failure, dict[str, object]] | None:
    """The failure, and the details of the event `hang_report`: "path" of the report's folder, "rank", "node", "reason",
    "step", "answered" (ranks with stacks); "problem" where the report could not be written. None when no rank hangs:
    one has got on, or ended, since it was last heard of. May raise `AgentLost`.
    """
    attempt.refresh()
    if not attempt.hung:
        return None
    states = attempt.states
    evidence = attempt.evidence(SECONDS)
    failure = culprit_of_hang(states, evidence)
    now = datetime.now(UTC)
    folder = log_directory / f"hang-{number}-{now:%Y%m%dT%H%M%S}"
    event: dict[str, object] = {"path": str(folder), "rank": failure.rank, "node": failure.node}
    event |= {"reason": failure.reason, "step": failure.step}
    event["answered"] = sum(bool(one.stacks) for one in evidence.values())
    try:
        write(folder, f"attempt {number}, {now.isoformat(timespec='seconds')}", failure, states, evidence)
    except OSError as error:  # a full disk, a lost mount: which may well be why the ranks hang
        event["problem"] = f"the report could not be written: {error}"
    return failure, event


def write(
    folder: Path, title: str, failure: Failure, states: Sequence[RankState], evidence: Mapping[int, Evidence]
) -> None:
    """`report.txt`, and `rank-00000.txt` for each rank. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [title, f"likely culprit: {failure.reason}", f"on node {failure.node}", ""]
    for state in states:
        one = evidence.get(state.rank, Evidence(source="none: its node has not answered in time"))
        lines.append(f"rank {state.rank} on {state.node}: {_does(state, one)}")
        (folder / f"rank-{state.rank:05d}.txt").write_text(_page(title, state, one))
    lines += ["", "stacks, most recent call first: rank-NNNNN.txt beside this file"]
    (folder / "report.txt").write_text("\n".join(lines) + "\n")


def _page(title: str, state: RankState, one: Evidence) -> str:
    facts = {
        "rank": f"{state.rank} on {state.node}, process {state.pid}, {title}",
        "state": _does(state, one),
        "entered": ", ".join(f"no. {n} of {group}" for group, n in one.entered.items()),
        "stacks": one.source,
    }
    head = "\n".join(f"{name:8} {value}" for name, value in facts.items() if value)
    return f"{head}\n\n{one.stacks.strip()}\n"


def _does(state: RankState, one: Evidence) -> str:
    """What a rank does, in a line."""
    step = "no step yet" if state.step is None else f"step {state.step}"
    if state.exit_code is not None:
        return f"ended with {state.exit_code}, {step}"
    since = "" if one.since_seconds is None else f" for {one.since_seconds:.1f} s"
    where = f", in {one.function}" if one.function else ""
    if state.stopped:
        doing = "stopped by a signal"
    elif one.waiting is None:
        doing = "has not answered"
    elif one.waiting:
        doing = f"waits in {one.waits_in}{since}"
    else:
        doing = "does not wait for others" + (f", last {one.last}" if one.last else "")
    return f"{step}, silent for {state.silent_seconds:.1f} s, {doing}{where}"
