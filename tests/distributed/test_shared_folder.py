"""A run's folder that not all nodes see is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.distributed.launch import run
from training import worker
from training.errors import RecipeError
from training.process import RankEnvironment
from training.shared_folder import MARK, check_shared

pytestmark = pytest.mark.timeout(200)


def look(folders: list[str]) -> list[str]:
    """One rank: what it says of each folder; `{rank}` in a name stands for a disk of its own."""
    found = []
    for folder in folders:
        try:
            check_shared(Path(folder.format(rank=dist.get_rank())))
            found.append("")
        except RecipeError as error:
            found.append(str(error))
    return found


def test_folder_of_the_same_name_on_another_disk_is_refused_by_who_has_it(tmp_path: Path) -> None:
    for name in ("shared", "disk-0", "disk-1"):
        (tmp_path / name).mkdir()
    left = tmp_path / "shared" / f"{MARK}0"
    left.touch()
    arguments: Any = [str(tmp_path / "shared"), str(tmp_path / "disk-{rank}"), str(tmp_path / "nowhere")]
    first, second = run("tests.distributed.test_shared_folder:look", 2, arguments, deadline=100)
    assert first == ["", "", ""], "and a disk that takes no file is for others to tell of"
    assert second[0] == second[2] == ""
    assert second[1].startswith("rank 1 on ") and "run.directory must be on a file system that all nodes" in second[1]
    assert not list(tmp_path.rglob(f"{MARK}*"))


def test_rank_without_the_runs_folder_says_what_run_directory_must_be(tmp_path: Path) -> None:
    environment = RankEnvironment(rank=3, world_size=4)
    with pytest.raises(RecipeError, match=r"rank 3 on .* does not see the run's folder .*nowhere as rank 0 does"):
        worker.work(tmp_path / "nowhere", [], environment)
