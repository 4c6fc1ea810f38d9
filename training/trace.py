"""What a trace of torch's profiler says of the recorded steps: shares of phases, of kernels, of idling. No torch.

A trace is the JSON that Kineto writes, Google's trace event format: complete events ("ph": "X") with a category "cat",
"ts" and "dur" in microseconds, and the thread "tid". Used here are the categories
  user_annotation            ProfilerStep#N around each step, `trestle:PHASE`, and Gloo's collectives (gloo:all_reduce)
  cpu_op                     operators on the host, nested in one another on a thread
  kernel, gpu_memcpy, gpu_memset   what the GPU does; NCCL's kernels are named nccl…
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PHASE = "trestle:"
"""What the names of the loop's phases begin with."""
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
COLLECTIVES = ("nccl", "gloo:", "c10d::")
"""What the names of communication begin with."""
MOST_NAMES = 100
"""Kernels or operators that a summary keeps."""

Event = Mapping[str, Any]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Share:
    """One kernel or operator, all calls of the recorded steps together."""

    name: str
    calls: int
    seconds: float
    """Self time: without the operators that it calls."""
    share: float
    """Of the self time of all of them."""


@dataclass(frozen=True)
class Summary:
    """The recorded steps of one rank. Shares are of `seconds`, 0 to 1."""

    device: str
    """`cuda` where kernels were recorded, else `cpu`."""
    steps: int
    seconds: float
    """From the first recorded step's begin to the last one's end."""
    step_seconds: float
    idle_share: float
    """No kernel runs on the GPU; without one: no operator runs on any thread, and no communication."""
    communication_share: float
    """Collectives and sends are under way, waiting for other ranks included."""
    communication_alone_share: float
    """And nothing else runs meanwhile."""
    phases: dict[str, float]
    """What the host's loop is in; `other` is between the phases."""
    top: list[Share]
    """Kernels, or operators where there are none, by self time."""


def read_trace(path: Path) -> dict[str, Any]:
    """A trace file, .json or .json.gz."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        trace: dict[str, Any] = json.load(file)
    return trace


def summary(trace: Mapping[str, Any]) -> Summary:
    """Raises ValueError for a trace without a recorded step."""
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X" and "dur" in event]
    marks = [event for event in events if event.get("cat") == "user_annotation"]
    steps = [event for event in marks if event["name"].startswith("ProfilerStep#")]
    if not steps:
        raise ValueError("the trace has no recorded step")
    window = min(event["ts"] for event in steps), max(_end(event) for event in steps)
    seconds = (window[1] - window[0]) / 1e6
    kernels = [event for event in events if event.get("cat") in ON_GPU]
    operators = [event for event in events if event.get("cat") == "cpu_op"]
    collectives = [event for event in (kernels or [*operators, *marks]) if event["name"].startswith(COLLECTIVES)]
    working = [event for event in kernels or operators if not event["name"].startswith(COLLECTIVES)]
    talking, busy = _within(collectives, window), _within([*working, *collectives], window)
    return Summary(
        device="cuda" if kernels else "cpu",
        steps=len(steps),
        seconds=seconds,
        step_seconds=seconds / len(steps),
        idle_share=1.0 - busy / (window[1] - window[0]),
        communication_share=talking / (window[1] - window[0]),
        communication_alone_share=(busy - _within(working, window)) / (window[1] - window[0]),
        phases=_phases(marks, window),
        top=_top(_durations(kernels) if kernels else _self_times(operators)),
    )


def _end(event: Event) -> float:
    return float(event["ts"]) + float(event["dur"])


def _within(events: Iterable[Event], window: Interval) -> float:
    """Microseconds of `window` in which at least one of the events runs."""
    total, reached = 0.0, window[0]
    for begin, end in sorted((float(event["ts"]), min(_end(event), window[1])) for event in events):
        if end > max(begin, reached):
            total += end - max(begin, reached)
            reached = end
    return total


def _phases(marks: Iterable[Event], window: Interval) -> dict[str, float]:
    """Share of `window` by phase; they add up to 1."""
    length = window[1] - window[0]
    found: dict[str, float] = {}
    for event in sorted(marks, key=lambda event: float(event["ts"])):
        if event["name"].startswith(PHASE):
            name = event["name"].removeprefix(PHASE)
            found[name] = found.get(name, 0.0) + _within([event], window) / length
    return {**found, "other": max(0.0, 1.0 - sum(found.values()))}


def _durations(events: Iterable[Event]) -> Iterator[tuple[str, float]]:
    return ((event["name"], float(event["dur"])) for event in events)


def _self_times(operators: Iterable[Event]) -> Iterator[tuple[str, float]]:
    """Each operator's own microseconds, without the operators nested in it on its thread."""
    by_thread: dict[Any, list[Event]] = {}
    for event in operators:
        by_thread.setdefault((event.get("pid"), event.get("tid")), []).append(event)
    for thread in by_thread.values():
        running: list[list[Any]] = []  # [event, microseconds of its own], innermost last
        for event in sorted(thread, key=lambda event: (float(event["ts"]), -float(event["dur"]))):
            while running and _end(running[-1][0]) <= float(event["ts"]):
                done, own = running.pop()
                yield done["name"], own
            if running:
                running[-1][1] -= float(event["dur"])
            running.append([event, float(event["dur"])])
        for done, own in reversed(running):
            yield done["name"], own


def _top(times: Iterable[tuple[str, float]]) -> list[Share]:
    calls: dict[str, int] = {}
    spent: dict[str, float] = {}
    for name, microseconds in times:
        calls[name] = calls.get(name, 0) + 1
        spent[name] = spent.get(name, 0.0) + max(0.0, microseconds)
    total = sum(spent.values()) or 1.0
    names = sorted(spent, key=lambda name: (-spent[name], name))[:MOST_NAMES]
    return [Share(name, calls[name], spent[name] / 1e6, spent[name] / total) for name in names]
