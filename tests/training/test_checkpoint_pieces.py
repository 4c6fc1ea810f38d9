"""Any cut of a tensor can be read back by any other cut, to the bit."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.checkpoint import Checkpoint, CheckpointMismatch, CheckpointWriter, Piece
from training.checkpoint.pieces import Assembly, Rectangle, Shape, decompose

SHAPES = st.lists(st.integers(1, 7), max_size=4).map(tuple)


@st.composite
def partitions(draw: st.DrawFn, shape: Shape) -> list[Piece]:
    """The tensor cut into a grid of boxes, each box into flat ranges: what tensor parallelism and ZeRO leave."""
    grid: list[tuple[Shape, Shape]] = [((), ())]
    for size in shape:
        cuts = sorted(draw(st.sets(st.integers(1, size - 1), max_size=2))) if size > 1 else []
        spans = list(zip([0, *cuts], [*cuts, size], strict=True))
        grid = [((*offset, a), (*extent, b - a)) for offset, extent in grid for a, b in spans]
    pieces = []
    for offset, extent in grid:
        numel = math.prod(extent)
        cuts = sorted(draw(st.lists(st.integers(0, numel), max_size=3)))
        for start, stop in zip([0, *cuts], [*cuts, numel], strict=True):
            pieces.append(Piece("w", "weight", shape, offset, extent, start, stop))
    return draw(st.permutations(pieces))


def elements(piece: Piece, tensor: torch.Tensor) -> torch.Tensor:
    """The piece's elements by plain indexing: what the code under test must agree with."""
    box = tensor
    for dim, (start, extent) in enumerate(zip(piece.box_offset, piece.box_shape, strict=True)):
        box = box.narrow(dim, start, extent)
    return box.reshape(-1)[piece.flat_start : piece.flat_stop]


@given(st.data())
@settings(deadline=None)  # a loaded machine is no failure
def test_a_flat_range_is_few_boxes_that_lie_contiguously_in_it(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    numel = math.prod(shape)
    start = data.draw(st.integers(0, numel))
    stop = data.draw(st.integers(start, numel))
    rectangles = decompose(shape, start, stop)
    assert len(rectangles) <= max(1, 2 * len(shape) - 1)
    index = torch.arange(numel).reshape(shape)
    found = [index[tuple(slice(a, b) for a, b in zip(r.offset, r.stop, strict=True))].reshape(-1) for r in rectangles]
    assert torch.cat([*found, torch.empty(0, dtype=torch.int64)]).tolist() == list(range(start, stop))


@given(st.data())
@settings(deadline=None)  # a loaded machine is no failure
def test_what_is_cut_one_way_is_read_back_another_way(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    tensor = torch.randn(shape)
    sources = data.draw(partitions(shape))
    for target in data.draw(partitions(shape)):
        assembly = Assembly(target)
        for source in sources:
            assembly.fill(source, elements(source, tensor))
        assert assembly.missing == []
        assert torch.equal(assembly.buffer, elements(target, tensor))


@given(st.data())
@settings(deadline=None)  # a loaded machine is no failure
def test_an_element_that_nobody_stored_is_missed(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    sources = [piece for piece in data.draw(partitions(shape)) if piece.numel]
    lost = data.draw(st.sampled_from(sources))
    assembly = Assembly(Piece.whole("w", "weight", shape))
    for source in sources:
        if source is not lost:
            assembly.fill(source, torch.zeros(source.numel))
    assert sum(rectangle.numel for rectangle in assembly.missing) == lost.numel


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_through_files_any_partition_reads_any_other(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    tensor = torch.randn(shape)
    sources = data.draw(partitions(shape))
    world_size = data.draw(st.integers(1, 3))
    with TemporaryDirectory() as folder:
        writers = [CheckpointWriter(Path(folder), rank, world_size) for rank in range(world_size)]
        for rank, writer in enumerate(writers):
            mine = list(dict.fromkeys(sources[rank::world_size]))  # two empty ranges at one place are the same piece
            writer.save(1, [(piece, elements(piece, tensor)) for piece in mine], {})
        for writer in writers:
            writer.wait()
        checkpoint = Checkpoint(Path(folder) / "step-00000001")
        checkpoint.verify()
        assert torch.equal(checkpoint.tensor("w"), tensor)
        for target in data.draw(partitions(shape)):
            assert torch.equal(checkpoint.read(target), elements(target, tensor))


def test_overlapping_copies_are_welcome_and_gaps_are_not(tmp_path: Path) -> None:
    tensor = torch.arange(20.0).reshape(4, 5)
    cuts = [Piece("w", "weight", (4, 5), (0, 0), (4, 5), a, b) for a, b in ((0, 9), (3, 7), (5, 14), (15, 20))]
    writer = CheckpointWriter(tmp_path, 0, 1, asynchronous=False)
    writer.save(1, [(piece, elements(piece, tensor)) for piece in cuts], {})
    checkpoint = Checkpoint(tmp_path / "step-00000001")
    reachable = Piece("w", "weight", (4, 5), (0, 1), (3, 3), 1, 8)
    assert torch.equal(checkpoint.read(reachable), elements(reachable, tensor))
    with pytest.raises(CheckpointMismatch, match=r"none of its files covers \[2, 4\] … \[2, 4\]"):
        checkpoint.tensor("w")


def test_bf16_is_kept_as_bf16_and_read_as_fp32(tmp_path: Path) -> None:
    tensor = torch.randn(33).bfloat16()
    writer = CheckpointWriter(tmp_path, 0, 1, asynchronous=False)
    whole = Piece.whole("w", "weight", (33,))
    writer.save(1, [(whole, tensor), (Piece.whole("v", "weight", (3,)), torch.arange(3.0))], {})
    read = Checkpoint(tmp_path / "step-00000001").read(whole)
    assert read.dtype == torch.float32
    assert torch.equal(read, tensor.float())


@pytest.mark.parametrize(
    ("piece", "complaint"),
    [
        (("w", "weight", (4,), (2,), (3,), 0, 3), "leaves the tensor"),
        (("w", "weight", (4,), (0, 0), (4,), 0, 4), "differ in their number of dimensions"),
        (("w", "weight", (4,), (0,), (4,), 0, 5), "leaves its box"),
        (("w", "weight", (4,), (0,), (4,), 3, 2), "leaves its box"),
        (("w", "weight", (4,), (-1,), (4,), 0, 2), "non-negative"),
        (("w", "../weight", (4,), (0,), (4,), 0, 4), "lower-case word"),
        (("", "weight", (4,), (0,), (4,), 0, 4), "name"),
    ],
)
def test_a_piece_that_contradicts_itself_is_refused(piece: tuple, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Piece(*piece)


def test_reading_one_column_block_of_a_wide_layout_opens_only_the_files_that_hold_it(tmp_path: Path) -> None:
    """Ranged reads: with every other file gone, a piece that does not need them still reads."""
    tensor = torch.randn(8, 8)
    world_size = 4
    writers = [CheckpointWriter(tmp_path, rank, world_size) for rank in range(world_size)]
    for rank, writer in enumerate(writers):
        piece = Piece("w", "weight", (8, 8), (0, 2 * rank), (8, 2), 0, 16)
        writer.save(1, [(piece, elements(piece, tensor))], {})
    for writer in writers:
        writer.wait()
    path = tmp_path / "step-00000001"
    for rank in (0, 1, 3):
        (path / f"rank-{rank:05d}.safetensors").unlink()
    wanted = Piece("w", "weight", (8, 8), (3, 4), (4, 2), 1, 7)
    assert torch.equal(Checkpoint(path).read(wanted), elements(wanted, tensor))


def test_the_rest_of_a_rectangle_without_its_inner_part_is_disjoint_and_complete() -> None:
    outer, inner = Rectangle((1, 2, 0), (5, 4, 3)), Rectangle((2, 3, 1), (2, 2, 1))
    seen = torch.zeros(6, 6, 3, dtype=torch.int64)
    for rectangle in [inner, *outer.subtract(inner)]:
        seen[tuple(slice(a, b) for a, b in zip(rectangle.offset, rectangle.stop, strict=True))] += 1
    assert seen[1:6, 2:6].eq(1).all()
    assert seen.sum() == outer.numel
