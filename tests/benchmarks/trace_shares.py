"""What a step's time goes into, from a trace of torch's profiler (the events of `export_chrome_trace`).

Four shares of the clock that add up to 1. The device is busy: with the optimizer step, or with anything else of forward
and backward (`kernels`). It is idle: while the host waits for a batch (`data`), or for whatever other reason (`host`).
Where there is no device, the clock of the host's own phases is divided instead.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from training.trace import ON_GPU, PHASE

Interval = tuple[float, float]

_LAUNCHES = ("cuda_runtime", "cuda_driver")
_KINDS: list[tuple[str, str]] = [  # the first pattern that a kernel's name matches says what it does
    ("attention", r"flash|fmha|sdpa|attention"),
    ("matrix products", r"gemm|nvjet|cutlass|xmma|cublas|splitk"),
    ("communication", r"nccl"),
    ("copies", r"memcpy|memset|copy"),
]


def shares(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`share_kernels`, `share_optimizer`, `share_data`, `share_host`, `shares_from` ("device" or "clock"), and
    `device_kinds`: the device's busy time by what kernels do, as shares of the clock too (those that run beside one
    another count twice).
    """
    spans = [e for e in events if e.get("ph") == "X"]
    phases = [(str(e["name"])[len(PHASE) :], _interval(e)) for e in spans if _is_phase(e)]
    if not phases:
        raise ValueError(f"the trace has no phase: no span's name begins with {PHASE}")
    device = [e for e in spans if e.get("cat") in ON_GPU]
    begun = min(interval[0] for _, interval in phases)
    ended = max(interval[1] for interval in [*(i for _, i in phases), *map(_interval, device)])
    wall = ended - begun
    of_phase = {name: merged(i for n, i in phases if n == name) for name in ("data", "forward_backward", "optimizer")}
    if not device:
        clock = {name: length(found) / wall for name, found in of_phase.items()}
        found = {"kernels": clock["forward_backward"], "optimizer": clock["optimizer"], "data": clock["data"]}
        return {**_named(found), "shares_from": "clock", "device_kinds": {}}
    launched = {e["args"]["correlation"]: float(e["ts"]) for e in spans if _launches(e)}
    in_optimizer: list[Interval] = []
    elsewhere: list[Interval] = []
    for event in device:
        at = launched.get(event.get("args", {}).get("correlation"), float(event["ts"]))
        (in_optimizer if contains(of_phase["optimizer"], at) else elsewhere).append(_interval(event))
    busy = merged(clipped([*in_optimizer, *elsewhere], begun, ended))
    optimizer = length(merged(clipped(in_optimizer, begun, ended)))
    idle = complement(busy, begun, ended)
    found = {
        "kernels": (length(busy) - optimizer) / wall,
        "optimizer": optimizer / wall,
        "data": length(intersection(idle, of_phase["data"])) / wall,
    }
    kinds: dict[str, float] = {}
    for event in device:
        kind = kind_of(str(event["name"]))
        kinds[kind] = kinds.get(kind, 0.0) + float(event["dur"]) / wall
    return {**_named(found), "shares_from": "device", "device_kinds": kinds}


def kind_of(kernel: str) -> str:
    """What a kernel does, by its name."""
    return next((kind for kind, pattern in _KINDS if re.search(pattern, kernel, re.IGNORECASE)), "others")


def _named(found: dict[str, float]) -> dict[str, float]:
    found = {**found, "host": max(0.0, 1.0 - sum(found.values()))}
    return {f"share_{name}": value for name, value in found.items()}


def _is_phase(event: Mapping[str, Any]) -> bool:
    # The profiler repeats a mark on the device's time line, around the kernels that it launched.
    return str(event.get("name", "")).startswith(PHASE) and event.get("cat") != "gpu_user_annotation"


def _launches(event: Mapping[str, Any]) -> bool:
    return event.get("cat") in _LAUNCHES and "correlation" in event.get("args", {})


def _interval(event: Mapping[str, Any]) -> Interval:
    return float(event["ts"]), float(event["ts"]) + float(event["dur"])


# -- sets of points in time, as sorted intervals that do not touch ----


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The union."""
    found: list[Interval] = []
    for low, high in sorted(intervals):
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return found


def clipped(intervals: Iterable[Interval], begun: float, ended: float) -> list[Interval]:
    return [(max(low, begun), min(high, ended)) for low, high in intervals if low < ended and high > begun]


def length(intervals: Iterable[Interval]) -> float:
    return sum(high - low for low, high in intervals)


def complement(intervals: Sequence[Interval], begun: float, ended: float) -> list[Interval]:
    """What of [begun, ended) is in none of `intervals`."""
    edges = [begun, *(edge for interval in intervals for edge in interval), ended]
    return [(low, high) for low, high in zip(edges[::2], edges[1::2], strict=True) if high > low]


def intersection(first: Sequence[Interval], second: Sequence[Interval]) -> list[Interval]:
    found = []
    i = j = 0
    while i < len(first) and j < len(second):
        low, high = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if low < high:
            found.append((low, high))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return found


def contains(intervals: Sequence[Interval], point: float) -> bool:
    place = bisect_right(intervals, (point, float("inf"))) - 1
    return place >= 0 and intervals[place][0] <= point < intervals[place][1]
