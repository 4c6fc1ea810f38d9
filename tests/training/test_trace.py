"""What a profiler's trace says, against traces whose answers are worked out by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.trace import read_trace, summary


def event(name: str, category: str, begin: float, end: float, thread: int = 1) -> dict[str, Any]:
    """A complete event from `begin` to `end` microseconds."""
    return {"ph": "X", "name": name, "cat": category, "ts": begin, "dur": end - begin, "pid": 7, "tid": thread}


def steps(*ends: float) -> list[dict[str, Any]]:
    """Steps one after the other, from 0."""
    begins = [0.0, *ends[:-1]]
    pairs = enumerate(zip(begins, ends, strict=True), 5)
    return [event(f"ProfilerStep#{number}", "user_annotation", *pair) for number, pair in pairs]


ON_A_CPU = {
    "traceEvents": [
        *steps(500, 1000),
        {"ph": "M", "name": "process_name", "pid": 7, "args": {"name": "python"}},
        {"ph": "i", "name": "Iteration Start", "ts": 0, "pid": 7, "tid": 1},
        event("trestle:data", "user_annotation", 0, 50),
        event("trestle:forward_backward", "user_annotation", 50, 400),
        event("trestle:optimizer", "user_annotation", 400, 450),
        event("trestle:forward_backward", "user_annotation", 500, 850),
        event("aten::linear", "cpu_op", 100, 200),
        event("aten::t", "cpu_op", 100, 110),
        event("aten::addmm", "cpu_op", 110, 190),
        event("aten::copy_", "cpu_op", 120, 130),
        event("aten::linear", "cpu_op", 600, 700),  # right behind one another
        event("aten::mul", "cpu_op", 700, 710),
        event("aten::add", "cpu_op", 650, 750, thread=2),
        event("gloo:all_reduce", "user_annotation", 740, 800, thread=3),
    ]
}
ON_A_GPU = {
    "traceEvents": [
        *steps(1000),
        event("aten::mm", "cpu_op", 0, 900),  # the host's: no kernel
        event("cudaLaunchKernel", "cuda_runtime", 10, 20),
        event("gemm", "kernel", 100, 300, thread=7),
        event("gemm", "kernel", 300, 400, thread=7),
        event("softmax", "kernel", 600, 650, thread=7),
        event("Memcpy HtoD (Pinned -> Device)", "gpu_memcpy", 50, 150, thread=8),
        event("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", "kernel", 350, 550, thread=9),
        event("trestle:forward_backward", "gpu_user_annotation", 100, 650, thread=7),
    ]
}


def test_operators_have_their_own_time_without_those_inside() -> None:
    found = summary(ON_A_CPU)
    by_name = {one.name: (one.calls, round(one.seconds * 1e6)) for one in found.top}
    assert found.device == "cpu"
    assert by_name == {
        "aten::linear": (2, 10 + 100),
        "aten::t": (1, 10),
        "aten::addmm": (1, 70),
        "aten::copy_": (1, 10),
        "aten::mul": (1, 10),
        "aten::add": (1, 100),
    }
    assert found.top[0].name == "aten::linear" and found.top[0].share == pytest.approx(110 / 310)
    assert sum(one.share for one in found.top) == pytest.approx(1.0)


def test_a_cpu_idles_where_neither_an_operator_nor_communication_runs() -> None:
    found = summary(ON_A_CPU)
    # 100-200 and 600-750 on two threads, then communication to 800.
    assert found.idle_share == pytest.approx(1 - (100 + 150 + 50) / 1000)
    assert found.communication_share == pytest.approx(0.06)
    assert found.communication_alone_share == pytest.approx(0.05)


def test_phases_add_up_to_the_recorded_time() -> None:
    found = summary(ON_A_CPU)
    assert (found.steps, found.seconds, found.step_seconds) == (2, pytest.approx(1e-3), pytest.approx(5e-4))
    assert found.phases == pytest.approx({"data": 0.05, "forward_backward": 0.7, "optimizer": 0.05, "other": 0.2})


def test_a_gpu_idles_where_no_kernel_runs_whatever_the_host_does() -> None:
    found = summary(ON_A_GPU)
    assert found.device == "cuda"
    assert found.idle_share == pytest.approx(1 - (550 - 50 + 50) / 1000)
    assert found.communication_share == pytest.approx(0.2)
    assert found.communication_alone_share == pytest.approx(0.15)
    assert [(one.name, one.calls) for one in found.top[:2]] == [
        ("gemm", 2),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", 1),
    ]
    assert found.top[0].share == pytest.approx(300 / 650)


def test_what_runs_beyond_the_recorded_steps_does_not_count() -> None:
    around = [
        event("early", "kernel", -100, 10),
        event("late", "kernel", 990, 2000),
        event("after", "kernel", 3000, 9000),
    ]
    assert summary({"traceEvents": [*steps(1000), *around]}).idle_share == pytest.approx(1 - 20 / 1000)


@given(st.lists(st.tuples(st.integers(-50, 150), st.integers(0, 60)), min_size=1, max_size=30))
def test_busy_time_is_that_counted_microsecond_by_microsecond(kernels: list[tuple[int, int]]) -> None:
    found = summary({"traceEvents": [*steps(100), *(event("k", "kernel", at, at + long) for at, long in kernels)]})
    busy = sum(any(at <= moment < at + long for at, long in kernels) for moment in range(100))
    assert found.idle_share == pytest.approx(1 - busy / 100)


def test_a_trace_without_a_recorded_step_is_refused() -> None:
    with pytest.raises(ValueError, match="no recorded step"):
        summary({"traceEvents": [event("aten::mm", "cpu_op", 0, 1)]})


def test_traces_are_read_packed_and_plain(tmp_path: Path) -> None:
    text = json.dumps(ON_A_CPU).encode()
    (tmp_path / "a.json").write_bytes(text)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(text))
    assert read_trace(tmp_path / "a.json") == read_trace(tmp_path / "a.json.gz") == ON_A_CPU
