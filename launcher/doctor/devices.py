"""Every device of this machine: does it multiply right, how fast, and how fast does it move bytes.

As a program (`python -m launcher.doctor.devices`) it measures and prints JSON, one device a line, apart from the
doctor's own process: a broken driver may crash or hang it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from launcher.doctor.findings import Finding, Status

SECTION = "devices"
CPU_SIDE, GPU_SIDE = 1024, 8192  # of the square matrices
CPU_BYTES, GPU_BYTES = 256 * 2**20, 2**30
MEASURE_SECONDS = 0.5
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
"""Largest error of a product over its largest entry. TF32 where it is on counts as float32; bf16 keeps 8 bits."""


def measure(say: Callable[[dict[str, Any]], None]) -> None:
    """Tell the versions first, then one object for each device."""
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if cuda else None
    say({"cuda": torch.version.cuda, "available": cuda, "nccl": nccl, "gloo": dist.is_gloo_available()})
    say({"device": "cpu", "name": f"{torch.get_num_threads()} threads", **_speeds(torch, "cpu")})
    for i in range(torch.cuda.device_count() if cuda else 0):
        free, total = torch.cuda.mem_get_info(i)
        about = {"device": f"cuda:{i}", "name": torch.cuda.get_device_name(i), "free": free, "total": total}
        try:
            about |= _speeds(torch, f"cuda:{i}")
            if i > 0:
                about["from_first"] = _transfer(torch, "cuda:0", f"cuda:{i}")
        except RuntimeError as error:  # out of memory, an ECC error, …
            about["error"] = str(error).splitlines()[0][:200]
        say(about)


def findings_of(told: list[dict[str, Any]], gpus_by_driver: int) -> list[Finding]:
    """The lines of the screen. `gpus_by_driver`: how many the driver shows, whatever torch sees."""
    build = told[0]
    findings = []
    if gpus_by_driver and not build["available"]:
        if build["cuda"] is None:
            words = f"this torch is built for the CPU, and there are {gpus_by_driver} GPUs"
            mend = "pip install 'torch==2.13.0' from the CUDA index that pytorch.org names for your driver"
        else:
            words = f"torch is built for CUDA {build['cuda']}, but cannot use the {gpus_by_driver} GPUs"
            mend = "update the driver (nvidia-smi shows which CUDA it can do), or give the container --gpus all"
        findings.append(Finding(SECTION, "CUDA", Status.FAIL, words, mend))
    elif build["available"]:
        findings.append(Finding(SECTION, "CUDA", Status.OK, f"{build['cuda']}, NCCL {build['nccl']}"))
    else:
        words = "none, and no GPU that would need it: training runs on the CPU, over gloo"
        findings.append(Finding(SECTION, "CUDA", Status.OK, words))
    if not build["gloo"]:
        mend = "install a torch that was built with gloo, such as the wheels of pytorch.org"
        findings.append(Finding(SECTION, "gloo", Status.FAIL, "this torch was built without it", mend))
    return findings + [_device(one) for one in told[1:]]


def _device(one: dict[str, Any]) -> Finding:
    name = f"{one['device']}"
    if "error" in one:
        mend = "see nvidia-smi -q for ECC and Xid errors, and whether another program holds its memory"
        return Finding(SECTION, name, Status.FAIL, f"{one['name']}: {one['error']}", mend)
    text = f"{one['name']}"
    if "total" in one:
        text += f", {one['free'] / 2**30:.1f} GiB free of {one['total'] / 2**30:.1f}"
    text += "; matrix product " + ", ".join(f"{n} {_flops(v)}" for n, v in one["flops"].items())
    text += f"; copies {one['bytes_per_second'] / 1e9:.0f} GB/s"
    if "from_first" in one:
        text += f", from cuda:0 {one['from_first'] / 1e9:.0f} GB/s"
    wrong = {n: e for n, e in one["errors"].items() if not e <= TOLERANCE[n]}
    if wrong:
        words = ", ".join(f"{n} off by {e:.1e}" for n, e in wrong.items())
        mend = "do not train on it: replace the device, or check its clocks and cooling"
        return Finding(SECTION, name, Status.FAIL, f"{text}; WRONG RESULTS: {words}", mend)
    if "total" in one and one["free"] < 0.9 * one["total"]:
        mend = "nvidia-smi names the programs that hold the rest: end them before training"
        return Finding(SECTION, name, Status.WARN, text, mend)
    return Finding(SECTION, name, Status.OK, text)


def _flops(value: float) -> str:
    return f"{value / 1e9:.0f} GFLOP/s" if value < 1e12 else f"{value / 1e12:.0f} TFLOP/s"


def _speeds(torch: Any, device: str) -> dict[str, Any]:
    """FLOP/s and error of a matrix product in each type, bytes a second of a copy (read and written)."""
    side = CPU_SIDE if device == "cpu" else GPU_SIDE
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(side, side, generator=generator) for _ in range(2))
    rows = slice(0, 16)
    exact = a[rows].double() @ b.double()
    flops, errors = {}, {}
    for name in TOLERANCE:
        x, y = (part.to(device, getattr(torch, name)) for part in (a, b))
        product = x @ y
        errors[name] = float((product[rows].double().cpu() - exact).abs().max() / exact.abs().max())
        flops[name] = 2 * side**3 / _seconds(torch, device, partial(torch.matmul, x, y))
    count = CPU_BYTES if device == "cpu" else GPU_BYTES
    source, target = (torch.ones(count, dtype=torch.uint8, device=device) for _ in range(2))
    copied = 2 * count / _seconds(torch, device, lambda: target.copy_(source))
    return {"flops": flops, "errors": errors, "bytes_per_second": copied}


def _transfer(torch: Any, one: str, other: str) -> float:
    source = torch.ones(GPU_BYTES, dtype=torch.uint8, device=one)
    target = torch.empty(GPU_BYTES, dtype=torch.uint8, device=other)
    return GPU_BYTES / _seconds(torch, other, lambda: target.copy_(source))


def _seconds(torch: Any, device: str, work: Callable[[], object]) -> float:
    """The fastest of several runs: other programs only ever make it slower."""

    def finish() -> None:
        if device != "cpu":
            torch.cuda.synchronize(device)

    work()
    finish()
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < MEASURE_SECONDS:
        before = time.perf_counter()
        work()
        finish()
        best = min(best, time.perf_counter() - before)
    return best


if __name__ == "__main__":
    measure(lambda told: print(json.dumps(told), flush=True))
