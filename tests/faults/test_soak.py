"""The short soak: one fault of each kind in a run over two nodes, which ends as if nothing had happened."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.faults.running import started
from tests.faults.schedule import DROP_STORAGE, FILL_DISK, HARMLESS, KINDS

SEED = 3


@pytest.mark.timeout(1700)
def test_run_over_two_nodes_survives_a_fault_of_every_kind_bit_for_bit(workplace: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    for name in ("recipe.yaml", "shards"):
        (tmp_path / name).symlink_to(workplace / name)
    command = [sys.executable, "-m", "tests.faults.soak", f"--seed={SEED}", f"--faults={len(KINDS)}"]
    command += [f"--where={tmp_path}", f"--result={result}"]
    with started(command, tmp_path, tmp_path / "runs" / "soak", deadline=1600) as soaking:
        said = soaking.end(0)
    found = json.loads(result.read_text())
    assert found["same"] and "equal to the bit" in said
    assert {fault["kind"] for fault in found["faults"]} == set(KINDS)
    for fault in found["faults"]:
        if fault["kind"] not in HARMLESS:
            assert fault["restarts"] >= 1, fault
        if fault["kind"] in (FILL_DISK, DROP_STORAGE):
            assert fault["restarts"] == 0, "training did not go on"
