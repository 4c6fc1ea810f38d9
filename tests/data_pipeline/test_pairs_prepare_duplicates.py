"""Perceptual hashes, and the search for those that differ in few bits."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.dedup.candidates import unpack
from data_pipeline.dedup.clusters import cluster
from data_pipeline.pairs.prepare.banding import find_leaders, find_near, tables
from data_pipeline.pairs.prepare.hashing import COLOURS, look
from data_pipeline.pairs.prepare.pictures import examine
from tests.data_pipeline.pictures import encoded, scene

_ALL = (1 << 64) - 1


def hash_of(image: Image.Image, kind: str = "PNG", quality: int = 90) -> int:
    return look(examine(encoded(image, kind, quality), 1 << 24).pixels)[0]


def bits_apart(a: int, b: int) -> int:
    return (a ^ b).bit_count()


@pytest.mark.parametrize("seed", range(6))
def test_another_encoding_or_size_changes_few_bits_and_another_picture_many(seed: int) -> None:
    image, _ = scene(seed, (200, 160))
    own = hash_of(image)
    assert bits_apart(own, hash_of(image, "JPEG", 40)) <= 3
    assert bits_apart(own, hash_of(image.resize((80, 64)))) <= 3
    assert bits_apart(own, hash_of(image.resize((700, 560)), "WEBP")) <= 3
    assert min(bits_apart(own, hash_of(scene(other, (200, 160))[0])) for other in range(50, 60)) > 12


def test_a_plain_picture_has_the_same_hash_anywhere_and_its_colour_tells_it_apart() -> None:
    plain = [Image.new("RGB", size, colour) for size in ((90, 70), (64, 64)) for colour in ("red", "blue", "white")]
    assert {hash_of(image) for image in plain} == {0}
    red, blue = (look(np.asarray(image))[1].astype(int) for image in plain[:2])
    assert np.abs(red - blue).mean() > 100 and len(red) == COLOURS


@pytest.mark.parametrize("distance", [0, 1, 4, 10])
@pytest.mark.parametrize("hashes", [10, 10**5, 10**8])
def test_whatever_bits_two_hashes_differ_in_some_table_has_them_together(distance: int, hashes: int) -> None:
    masks = tables(hashes, distance)
    draw = np.random.default_rng(distance)
    for _ in range(300):
        bits = draw.choice(64, size=distance, replace=False)
        difference = sum(1 << int(bit) for bit in bits)
        assert any(difference & mask == 0 for mask in masks)
    assert len(masks) <= 500


def test_more_hashes_are_divided_finer() -> None:
    narrowest = [min(mask.bit_count() for mask in tables(number, 4)) for number in (10**3, 10**6, 10**8)]
    assert narrowest[0] <= narrowest[1] < narrowest[2] and narrowest[2] >= 20


def groups_of(
    folder: Path,
    hashes: list[int],
    thumbs: list[list[int]] | None,
    distance: int,
    colour: float,
    cuts: int,
    ranges: int,
) -> list[int]:
    """The smallest id of each picture's group, by the tasks, over parts and ranges of that number."""
    count = len(hashes)
    parts, copies, firsts = [], [], []
    for n, chosen in enumerate(np.array_split(np.arange(count), cuts)):
        part, copy = folder / f"part{n}", folder / f"copy{n}"
        part.mkdir()
        copy.mkdir()
        np.save(part / "hashes.npy", np.array(hashes, dtype=np.uint64)[chosen])
        shown = np.zeros((count, COLOURS)) if thumbs is None else np.repeat(np.array(thumbs), COLOURS // 3, axis=1)
        np.save(part / "colours.npy", shown.astype(np.uint8)[chosen])
        np.save(copy / "kept.npy", chosen.astype(np.uint32))
        parts.append(str(part))
        copies.append(str(copy))
        firsts.append(int(chosen[0]) if len(chosen) else count)
    edges = [(1 << 64) * n // ranges for n in range(ranges + 1)]
    spans = [(low, high - 1) for low, high in itertools.pairwise(edges)]
    leaders, found = [], []
    for n, (low, high) in enumerate(spans):
        (folder / f"leaders{n}").mkdir()
        find_leaders(
            folder / f"leaders{n}", parts=parts, copies=copies, firsts=firsts, colour=colour, low=low, high=high
        )
        leaders.append(str(folder / f"leaders{n}"))
    for m, mask in enumerate(tables(count, distance)):
        for n, (low, high) in enumerate(spans):
            near = folder / f"near{m}-{n}"
            near.mkdir()
            find_near(near, leaders=leaders, distance=distance, colour=colour, mask=mask, low=low, high=high)
            found.append(str(near))
    (folder / "cluster").mkdir()
    cluster(folder / "cluster", pairs=[*leaders, *found])
    roots = np.arange(count)
    roots[np.load(folder / "cluster" / "ids.npy")] = np.load(folder / "cluster" / "roots.npy")
    return [int(root) for root in roots]


def groups_by_comparing_all(hashes: list[int], distance: int) -> list[int]:
    roots = list(range(len(hashes)))
    for i in range(len(hashes)):
        for j in range(i):
            if bits_apart(hashes[i], hashes[j]) <= distance and roots[i] != roots[j]:
                low, high = sorted((roots[i], roots[j]))
                roots = [low if root == high else root for root in roots]
    return roots


@given(
    centres=st.lists(st.integers(0, _ALL), min_size=1, max_size=4),
    changes=st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 63), max_size=6)), max_size=24),
    distance=st.integers(0, 5),
    cuts=st.integers(1, 4),
    ranges=st.integers(1, 3),
)
def test_groups_are_those_of_comparing_all_with_all(
    tmp_path_factory: pytest.TempPathFactory,
    centres: list[int],
    changes: list[tuple[int, list[int]]],
    distance: int,
    cuts: int,
    ranges: int,
) -> None:
    hashes = [*centres]
    for centre, bits in changes:
        changed = centres[centre % len(centres)]
        for bit in bits:
            changed ^= 1 << bit
        hashes.append(changed)
    found = groups_of(tmp_path_factory.mktemp("groups"), hashes, None, distance, 255, cuts, ranges)
    assert found == groups_by_comparing_all(hashes, distance)


def test_equal_hashes_are_parted_by_colour_and_near_ones_too(tmp_path: Path) -> None:
    hashes = [5, 5, 5, 4, 4, 5]
    thumbs = [[10, 10, 10], [200, 10, 10], [12, 10, 10], [10, 11, 10], [10, 200, 10], [198, 12, 10]]
    assert groups_of(tmp_path, hashes, thumbs, 2, 16.0, 2, 2) == [0, 1, 0, 0, 4, 1]


def test_a_hundred_thousand_equal_pictures_are_one_group_without_a_square_of_comparisons(tmp_path: Path) -> None:
    count = 100_000
    found = groups_of(tmp_path, [7] * count + [_ALL], None, 4, 16.0, 3, 1)
    assert found[:count] == [0] * count and found[count] == count
    larger, smaller = unpack(np.load(tmp_path / "leaders0" / "pairs.npy"))
    assert len(larger) == count - 1 and not smaller.any()
