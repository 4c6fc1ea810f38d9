"""`summarise` tells what a checkpoint holds and whether it is whole."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.training.checkpoints import write
from training.checkpoint import CheckpointWriter, Piece
from training.checkpoint.inspect import summarise


def test_a_whole_checkpoint_is_a_table_of_its_tensors(tmp_path: Path) -> None:
    write(tmp_path, 2, state={"tokens": 9})
    summary = summarise(tmp_path / "step-00000002")
    assert summary.health == "verified"
    assert (summary.step, summary.world_size, summary.state) == (2, 2, {"tokens": 9})
    assert [(row.name, row.shape, row.nbytes) for row in summary.rows] == [
        ("embedding", (7, 5), 3 * 4 * 35),
        ("layers.0.bias", (6,), 3 * 4 * 6),
        ("layers.0.cube", (3, 4, 2), 3 * 4 * 24),
        ("scale", (), 3 * 4),
    ]
    assert summary.parameters == 35 + 6 + 24 + 1
    bias = summary.rows[1]
    assert bias.kinds == ("weight", "exp_avg", "exp_avg_sq")
    assert (bias.minimum, bias.maximum, bias.mean, bias.nan, bias.infinite) == (2013.0, 2018.0, 2015.5, 0, 0)
    assert summary.nbytes == sum(path.stat().st_size for path in (tmp_path / "step-00000002").glob("rank-*"))


def test_nan_and_infinity_are_counted_and_kept_out_of_the_statistics(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, 0, 1, asynchronous=False)
    weight = torch.tensor([1.0, float("nan"), 3.0, float("inf")])
    moment = torch.tensor([float("nan")] * 4)
    piece = Piece.whole("w", "weight", (4,))
    only_nan = Piece.whole("v", "weight", (4,))
    pieces = [(piece, weight), (Piece.whole("w", "exp_avg", (4,)), moment), (only_nan, moment)]
    writer.save(1, pieces, {})
    v, w = summarise(tmp_path / "step-00000001").rows
    assert (w.minimum, w.maximum, w.mean, w.nan, w.infinite) == (1.0, 3.0, 2.0, 5, 1)
    assert (v.minimum, v.maximum, v.mean, v.nan) == (None, None, None, 4)


def test_statistics_of_a_tensor_larger_than_a_chunk_are_those_of_the_whole(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("training.checkpoint.inspect._CHUNK", 4)
    write(tmp_path, 2)
    row = summarise(tmp_path / "step-00000002").rows[0]
    assert (row.minimum, row.maximum, row.mean) == (2009.0, 2043.0, 2026.0)


def test_a_damaged_checkpoint_says_what_is_damaged_and_still_lists_what_it_can(tmp_path: Path) -> None:
    write(tmp_path, 2)
    folder = tmp_path / "step-00000002"
    (folder / "rank-00001.safetensors").unlink()
    summary = summarise(folder)
    assert summary.health == "rank-00001.safetensors: missing"
    assert len(summary.rows) == 4 and all(row.mean is None for row in summary.rows)
    (folder / "rank-00000.json").write_text("{}")
    assert summarise(folder).rows == []
    assert summarise(folder).health.startswith("rank-00000.json: truncated")
    (folder / "manifest.json").write_text("")
    assert summarise(folder).health == "manifest.json: empty"
