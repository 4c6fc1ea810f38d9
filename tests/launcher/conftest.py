"""A workplace as a user has it: a recipe with its shards, and the command as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.run_folder import RunFolder

Trestle = Callable[..., subprocess.CompletedProcess[str]]

RECIPE = """
run: {name: small, directory: runs, seed: 7}
model: {num_layers: 2, hidden_size: 32, num_attention_heads: 4, sequence_length: 64}
data:
  mix: [{shards: shards/network, weight: 0.7}, {shards: shards/tools, weight: 0.3}]
  validation: [{shards: shards/network-validation}]
batch: {global_batch_size: 8, micro_batch_size: 2}
training: {steps: 4, validate_every: 2, precision: fp32}
checkpoint: {every: 2}
cluster: {ranks_per_node: 1}
prepare:
  output: shards
  sequence_length: 64
  tokenizer: {vocab_size: 500, sample_bytes: 150000}
  validation_fraction: 0.15
  corpora:
    - {name: network, sources: ["{stdlib}/email/*.py", "{stdlib}/http/*.py"], weight: 0.7}
    - {name: tools, sources: ["{stdlib}/importlib/**/*.py", "{stdlib}/unittest/*.py"], weight: 0.3}
"""


def trestle_in(folder: Path, deadline: float = 240) -> Trestle:
    """`python -m launcher …` as a user calls it, in `folder`; `deadline` in seconds."""

    def call(*words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-m", "launcher", *words],
            cwd=folder,
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=deadline,
        )

    return call


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipe.yaml and the shards that `trestle prepare` made of it. Read-only for tests."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "recipe.yaml").write_text(RECIPE)
    done = trestle_in(folder)("prepare", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    (folder / "prepare.out").write_text(done.stdout)
    return folder


@pytest.fixture(scope="session")
def trained(workplace: Path) -> RunFolder:
    """A run of 4 steps that `trestle train` made. Read-only for tests."""
    done = trestle_in(workplace)("train", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    (workplace / "train.out").write_text(done.stdout)
    return RunFolder(workplace / "runs" / "small")


@pytest.fixture
def here(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh current directory with the same recipe, and the shards at the same relative path."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "shards").symlink_to(workplace / "shards")
    monkeypatch.chdir(tmp_path)
    return tmp_path
