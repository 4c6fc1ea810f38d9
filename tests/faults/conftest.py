"""A folder with a recipe and its shards, and runs that nothing disturbed to compare with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.run_files import RunFiles
from tests.faults.running import TRESTLE, WORKER, started

STEPS = 80

RECIPE = f"""
run: {{name: undisturbed, directory: runs, seed: 7}}
model: {{num_layers: 2, hidden_size: 32, num_attention_heads: 4, sequence_length: 32}}
data:
  mix: [{{shards: shards/network, weight: 0.7}}, {{shards: shards/tools, weight: 0.3}}]
batch: {{global_batch_size: 8, micro_batch_size: 2}}
optimizer: {{lr: 1.0e-2, warmup: 4}}
training: {{steps: {STEPS}, log_every: 1, precision: bf16}}
checkpoint: {{every: 4, keep: 6}}
cluster: {{ranks_per_node: 2, start_seconds: 240, heartbeat_seconds: 120, grace_seconds: 60}}
prepare:
  output: shards
  sequence_length: 32
  tokenizer: {{type: char, vocab_size: 400}}
  validation_fraction: 0
  corpora:
    - {{name: network, sources: ["{{stdlib}}/email/*.py"], weight: 0.7}}
    - {{name: tools, sources: ["{{stdlib}}/importlib/*.py"], weight: 0.3}}
"""


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipe.yaml and shards/; each run in it has a name of its own."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "recipe.yaml").write_text(RECIPE)
    with started([*TRESTLE, "prepare", "recipe.yaml"], folder, folder) as preparing:
        preparing.end(0)
    return folder


@pytest.fixture(scope="session")
def undisturbed(workplace: Path) -> RunFiles:
    """Two data-parallel ranks, ZeRO-1, bf16, from the first step to the last, under Ray."""
    where = workplace / "runs" / "undisturbed"
    with started([*TRESTLE, "train", "recipe.yaml"], workplace, where, deadline=240) as run:
        run.end(0)
        assert run.files.last_step() == STEPS and not run.files.events("failed")
    return run.files


@pytest.fixture(scope="session")
def undisturbed_alone(workplace: Path) -> RunFiles:
    """One rank, without Ray."""
    command = [*WORKER, "recipe.yaml", "--run.name", "undisturbed-alone"]
    with started(command, workplace, workplace / "runs" / "undisturbed-alone") as run:
        run.end(0)
    return run.files
