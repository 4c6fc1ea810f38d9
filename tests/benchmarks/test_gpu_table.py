"""The GPU table's path at toy size, its search, and how it divides a step's time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.clip import options_from as clip_options
from tests.benchmarks.gpu import Table, options_from, run_child
from tests.benchmarks.gpu_jobs import clip_jobs, gpt_jobs
from tests.benchmarks.gpu_search import ARMS, DEADLINE, MEMORY, OK, Setting, Tried, next_setting, telling
from tests.benchmarks.gpu_table import GPT_ROWS, markdown
from tests.benchmarks.trace_shares import shares


def table(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.benchmarks.gpu", *arguments, "--output", str(folder / "results.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.timeout(2 * 280 + 60)
def test_toy_table_is_written_as_json_and_markdown_and_not_measured_twice(tmp_path: Path) -> None:
    done = table(tmp_path, "--toy", "--only", "gpt", "loss")
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "results.json").read_text()
    results = json.loads(written)
    assert results["machine"]["versions"]["torch"]
    (tried,) = results["gpt"]["toy"]
    assert tried["status"] == OK and tried["tokens_per_second"] > 0
    assert sum(tried[f"share_{name}"] for name in ("kernels", "optimizer", "data", "host")) == pytest.approx(1)
    assert [side["side"] for side in results["loss"]["64"][0]["sides"]][-1] == "dense torch"
    shown = (tmp_path / "results.md").read_text()
    assert shown == done.stdout == markdown(results)
    assert "| toy | 4 | 2 | none | no |" in shown and "| gpt3-1.3b | not measured |" in shown

    again = table(tmp_path, "--toy", "--only", "gpt", "loss")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "results.json").read_text() == written


def test_without_results_every_row_says_that_it_is_not_measured() -> None:
    shown = markdown({})
    assert shown.startswith("Not measured yet: `python -m tests.benchmarks.gpu`")
    assert all(f"| {name} | not measured |" in shown for name in GPT_ROWS)


def test_rows_say_why_they_have_no_figures() -> None:
    out = {**vars(Setting(1)), "status": MEMORY, "date": "2026-01-01T00:00:00"}
    hung = {**out, "status": "deadline", "message": "not done after 420 s"}
    machine = {"device": "a GPU", "driver": "1", "cores": 8, "versions": {"torch": "2"}}
    shown = markdown({"machine": machine, "gpt": {"gpt3-6.7b": [out], "gpt3-2.7b": [hung]}})
    assert shown.startswith("Measured 2026-01-01 on one a GPU (driver 1), 8 CPU cores; torch 2.")
    assert "| gpt3-6.7b | not measured: out of memory down to micro-batch 1 |" in shown
    assert "| gpt3-2.7b | not measured: deadline (not done after 420 s) |" in shown


def test_the_fastest_try_is_the_row_beside_what_was_planned() -> None:
    figures = {"status": OK, "date": "2026-01-01", "samples": 32, "peak_bytes": 40 * 2**30, "planned_bytes": 39 * 2**30}
    figures["planned_tokens_per_second"] = 5.06e4
    figures |= {"mfu": 0.5, "mfu_causal": 0.475, "share_kernels": 0.9, "share_optimizer": 0.05}
    figures |= {"share_data": 0.0, "share_host": 0.05}
    tries = [
        {**vars(Setting(size)), **figures, "tokens_per_second": speed}
        for size, speed in ((16, 5.0e4), (8, 5.5e4), (4, 5.2e4))
    ]
    machine: dict[str, Any] = {"device": "a GPU", "driver": None, "cores": 8, "versions": {}}
    shown = markdown({"machine": machine, "gpt": {"gpt3-1.3b": tries}})
    assert "| gpt3-1.3b | 32 | 8 | none | yes | 55,000 | 0.92 | 50.0 % | 47.5 % | 40.0 GiB | 0.97 | 90.0 % |" in shown


def search(room: dict[tuple[str, bool], int], *, fits: int = 32, failing: bool = False) -> list[Tried]:
    """All tries of a model whose largest micro-batches by (recompute, offload) are `room`; larger is faster."""
    tries: list[Tried] = []
    while (setting := next_setting(tries, lambda s: s.micro_batch_size <= fits, 32)) is not None:
        status = OK if setting.micro_batch_size <= room.get((setting.recompute, setting.offload), 0) else MEMORY
        if failing and setting.compile:
            status = "failed"
        tries.append({**vars(setting), "status": status, "tokens_per_second": float(setting.micro_batch_size)})
        assert len(tries) < 40
    return tries


def sizes(tries: list[Tried], recompute: str, *, compiled: bool, offload: bool = False) -> list[int]:
    kind = (recompute, compiled, offload)
    return [one["micro_batch_size"] for one in tries if (one["recompute"], one["compile"], one["offload"]) == kind]


def test_search_halves_until_it_fits_and_looks_once_below() -> None:
    tries = search({("none", False): 8})
    assert sizes(tries, "none", compiled=True) == [32, 16, 8, 4]
    assert len(tries) == 4  # 8 samples fill the device: recomputation has nothing to buy


def test_search_begins_with_what_the_planner_says_fits() -> None:
    assert sizes(search({("none", False): 8}, fits=8), "none", compiled=True) == [8, 4]


def test_search_recomputes_where_little_fits_and_offloads_only_where_nothing_does() -> None:
    little = search({("none", False): 2, ("selective", False): 4, ("full", False): 16})
    assert sizes(little, "full", compiled=True) == [32, 16, 8] and sizes(little, "selective", compiled=False)[-2:] == [
        4,
        2,
    ]
    assert not any(one["offload"] for one in little)
    nothing = search({("full", True): 4}, fits=8)
    assert sizes(nothing, "full", compiled=True, offload=True) == [8, 4, 2]


def test_search_goes_on_uncompiled_where_the_compiler_fails() -> None:
    tries = search({("none", False): 16}, failing=True)
    assert [one["status"] for one in tries if one["compile"]] == ["failed"]
    assert sizes(tries, "none", compiled=False) == [32, 16, 8]


def test_a_try_that_had_less_time_than_one_has_now_is_made_again_and_one_that_had_it_is_not() -> None:
    def after(seconds: float) -> Setting | None:
        cut = {**vars(Setting(32)), "status": DEADLINE, "process_seconds": seconds}
        return next_setting(telling([cut], 420.0), lambda _: True, 32)

    assert after(87.0) == Setting(32)
    assert after(420.5) == Setting(32, "selective", compile=False)  # the compiler hangs: none of its arms


def test_every_setting_that_clip_is_searched_for_is_one_that_its_benchmark_takes(tmp_path: Path) -> None:
    (job,) = (job for job in clip_jobs(tmp_path, None) if job.name == "clip-vit-l-14")
    for recompute, compiled, _ in ARMS:
        given = clip_options(job.command(Setting(4, recompute, compiled), tmp_path / "result")[3:])
        assert (given.recompute, given.compile, given.micro) == (recompute, compiled, [4])


def test_models_that_are_no_rows_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = options_from(["--toy", "--models", "toy", "gpt3-1.3", "--output", str(tmp_path / "results.json")])
    assert Table(options, {"device": "cpu", "memory_bytes": None}).run() == 2
    assert capsys.readouterr().err == "--models gpt3-1.3: no such row; there are toy, 64\n"
    assert list(tmp_path.iterdir()) == []


def test_rows_are_a_gpus_share_of_the_shipped_recipes_and_begin_with_what_fits(tmp_path: Path) -> None:
    jobs = {job.name: job for job in gpt_jobs(tmp_path, 80 * 2**30)}
    assert set(jobs) == set(GPT_ROWS)
    assert {name: getattr(job, "samples") for name, job in jobs.items()} == dict.fromkeys(GPT_ROWS, 32) | {
        "gpt3-6.7b": 64
    }
    first = jobs["gpt3-6.7b"].next_setting([])
    assert first is not None and first.offload  # 6.7e9 x 18 bytes are more than any other setting leaves room for


def test_a_try_that_hangs_or_runs_out_of_memory_is_told_from_one_that_fails(tmp_path: Path) -> None:
    def status(code: str, patience: float = 60.0) -> str:
        return run_child([sys.executable, "-c", code], patience, tmp_path / "log")[0]

    assert status("import signal; signal.pause()", 0.5) == "deadline"
    for said in (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB",
        "torch.AcceleratorError: CUDA error: out of memory",
        "RuntimeError: CUDA driver error: out of memory",
        "RuntimeError: Triton Error [CUDA]: out of memory",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    ):
        assert status(f"exit({said!r})") == MEMORY, said
    assert status("exit('torch.AcceleratorError: CUDA error: an illegal memory access was encountered')") == "failed"
    assert status("import os, signal; os.kill(os.getpid(), signal.SIGKILL)") == MEMORY  # by the kernel, say
    assert run_child([sys.executable, "-c", "exit('no')"], 60.0, tmp_path / "log") == ("failed", "exit code 1: no")


def span(name: str, ts: float, dur: float, cat: str = "user_annotation", correlation: int = 0) -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": ts, "dur": dur, "cat": cat, "args": {"correlation": correlation}}


def test_time_is_divided_by_what_the_device_does_and_why_it_is_idle() -> None:
    events = [
        span("trestle:data", 0, 10),
        span("trestle:forward_backward", 10, 50),
        span("trestle:optimizer", 60, 40),
        span("cudaLaunchKernel", 12, 1, "cuda_runtime", 1),
        span("cudaLaunchKernel", 14, 1, "cuda_runtime", 2),
        span("cuLaunchKernel", 61, 1, "cuda_driver", 3),
        span("nvjet_tst_128x256", 15, 30, "kernel", 1),
        span("flash_fwd_kernel", 45, 30, "kernel", 2),  # runs on into the optimizer's phase, but was launched before it
        span("multi_tensor_apply_kernel", 75, 20, "kernel", 3),
        span("trestle:optimizer", 75, 20, "gpu_user_annotation"),
        {"ph": "f", "name": "flow", "ts": 0},
    ]
    found = shares(events)
    assert found["share_kernels"] == pytest.approx(0.6) and found["share_optimizer"] == pytest.approx(0.2)
    assert found["share_data"] == pytest.approx(0.1) and found["share_host"] == pytest.approx(0.1)
    assert found["device_kinds"] == pytest.approx({"matrix products": 0.3, "attention": 0.3, "others": 0.2})
    assert found["shares_from"] == "device"
