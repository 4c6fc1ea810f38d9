"""The benchmarks still run: each once with `--quick`, which measures nothing worth keeping."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("step", ["ratios to nanoGPT-style", "transformers GPT-2", "Trestle, eager", "CPU cores"]),
        ("stream", ["numpy memmap, random", "stream: mix, shuffle, CRCs done"]),
        ("shuffle", ["perfect", "full", "windowed, 64 members"]),
        ("checkpoint_stall", ["stall ÷ blocking save", "all that the loop loses"]),
        ("checkpoint_scaling", ["written a rank", "fetched a rank"]),
        ("checkpoint_175b", ["data a rank", "manifest, kB", "index over all records"]),
        ("dedup", ["candidates, theory", "documents per CPU-s", "peak memory"]),
        ("prepare", ["all before the tokenizer", "peak memory of all processes"]),
        ("clip", ["samples/s", "loss seconds", "toy"]),
        ("memory", ["predicted, MB", "measured, MB", "ratio", "CPU cores"]),
        ("contrastive", ["÷ dense", "fp32 against fp64", "memory beyond the features", "open_clip"]),
        ("pictures", ["Pillow", "Trestle's stream, 4 threads besides", "CPU cores"]),
        (
            "scaling",
            ["sequence: ", "micro-batches: ", "layers: ", "measured ÷ theory", "64, one rank's groups alone"],
        ),
        ("recovery", ["Trestle, detected", "Trestle, next optimizer step", "measured elsewhere: torchrun"]),
    ],
)
def test_quick_run_prints_both_sides(name: str, says: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}", "--quick"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [word for word in says if word not in done.stdout] == []
