"""`trestle prepare` over Ray, killed at random moments: the next call goes on, and no byte is another."""

from __future__ import annotations

import contextlib
import hashlib
import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import yaml

RECIPE = {
    "sequence_length": 32,
    "validation_fraction": 0.15,
    "part_bytes": 100_000,
    "tokenizer": {"vocab_size": 600, "sample_bytes": 200_000},
    "corpora": [
        {
            "name": "network",
            "sources": ["{stdlib}/email/*.py", "{stdlib}/http/*.py"],
            "weight": 0.7,
            "stages": ["clean", "deduplicate", "fuzzy_deduplicate"],
        },
        {"name": "tools", "sources": ["{stdlib}/importlib/**/*.py", "{stdlib}/unittest/*.py"], "weight": 0.3},
    ],
}


def command(folder: Path, workers: int) -> list[str]:
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "output": str(folder / "shards")}))
    return [sys.executable, "-m", "launcher", "prepare", str(recipe), "--prepare.workers", str(workers)]


def hashes(shards: Path) -> dict[str, str]:
    """Of all files but the reports, which hold times, and mix.yaml, which holds paths."""
    files = (path for path in shards.rglob("*") if path.is_file() and "report." not in path.name)
    return {
        str(path.relative_to(shards)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name not in ("mix.yaml", ".prepare.lock")
    }


def descendants_with(text: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if text in " ".join(process.cmdline()) or text in str(process.cwd()):
                found.append(process)
    return found


def test_killed_again_and_again_it_ends_with_the_bytes_of_an_undisturbed_run(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    subprocess.run(command(tmp_path / "whole", workers=1), check=True, timeout=200, capture_output=True)
    draw = random.Random(11)
    for _ in range(3):
        process = subprocess.Popen(command(tmp_path / "killed", workers=2), stdout=subprocess.PIPE, text=True)
        ray = _children_after(process, seconds=5.0 + draw.uniform(0, 4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        # Ray's processes end themselves when their driver is gone.
        _, alive = psutil.wait_procs(ray, timeout=60)
        assert alive == []
    done = subprocess.run(command(tmp_path / "killed", workers=2), timeout=200, capture_output=True, text=True)
    if (tmp_path / "killed" / "shards" / "mix.yaml").exists() and done.returncode == 2:
        assert "holds a prepared mix already" in done.stderr  # the last kill came after the end
    else:
        assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "killed" / "shards") == hashes(tmp_path / "whole" / "shards")
    assert descendants_with(str(tmp_path)) == []


def _children_after(process: subprocess.Popen[str], seconds: float) -> list[psutil.Process]:
    """What the process has started by then; sooner if it has ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return []
    return psutil.Process(process.pid).children(recursive=True)
