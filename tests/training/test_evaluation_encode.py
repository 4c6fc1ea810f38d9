"""Features of held-out pairs are the same whoever encodes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed.launch import run
from tests.training.evaluation_rank import COLOURS, CONTEXT, MICRO, Painted, Toy, Words, everything, suite
from training.errors import Diverged
from training.evaluation.encode import Encoded, Team, chosen, encode_pairs


def alone(pairs: Painted, toy: Toy | None = None, limit: int = 0) -> Encoded:
    return encode_pairs(pairs, Words(), CONTEXT, toy or Toy(), team=Team(), micro_batch_size=MICRO, limit=limit)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes found together."""
    folder = tmp_path_factory.mktemp("ranks")
    run("tests.training.evaluation_rank:evaluate", 2, str(folder), deadline=120)
    return folder


def encoded(ranks: Path, size: int) -> list[dict[str, Any]]:
    """What each rank knows of a set of `size` pairs."""
    return [torch.load(ranks / f"encoded-{rank}.pt", weights_only=True)[size] for rank in range(2)]


@pytest.mark.parametrize("size", [1, 2, 9])
def test_every_rank_gets_what_one_process_computes(ranks: Path, size: int) -> None:
    expected = alone(Painted(size))
    for found in encoded(ranks, size):
        assert torch.allclose(found["images"], expected.images, atol=1e-6) and found["images"].shape == (size, 3)
        assert torch.allclose(found["text_features"], expected.text_features, atol=1e-6)
        assert found["captions"] == expected.captions == [list(COLOURS)[i % 4] for i in range(size)]
        assert found["texts"] == list(COLOURS)[:size]
        assert found["text_of"].tolist() == [i % 4 for i in range(size)]
        assert found["picture_of"].tolist() == list(range(size))


@pytest.mark.parametrize(("size", "images"), [(1, 1), (2, 1), (9, 2)])
def test_ranks_call_the_model_equally_often_with_full_micro_batches(ranks: Path, size: int, images: int) -> None:
    """Models whose ranks talk to each other would wait for ever otherwise; with fewer pairs than ranks, too."""
    for found in encoded(ranks, size):
        assert found["calls"] == [("images", MICRO)] * images + [("texts", MICRO)]
        assert found["beats"] == images + 1


def test_each_pair_is_read_by_one_rank(ranks: Path) -> None:
    assert [found["reads"] for found in encoded(ranks, 9)] == [[(0, 4)], [(4, 4), (8, 1)]]


def test_several_ranks_find_what_one_finds_and_one_of_them_draws(ranks: Path) -> None:
    expected = suite(everything(), Team()).run(Toy())
    found = [json.loads((ranks / f"findings-{rank}.json").read_text()) for rank in range(2)]
    assert all(each["figures"] == pytest.approx(expected.figures) for each in found)
    assert found[0]["figures"] == found[1]["figures"]
    assert [[tag for tag, _ in each["pictures"]] for each in found] == [[tag for tag, _ in expected.pictures], []]


def test_equal_captions_are_encoded_once_and_equal_pictures_known() -> None:
    class Twins(Painted):
        def _paint(self, place: int) -> np.ndarray:
            return super()._paint(place % 5)

        def captions(self, start: int, size: int) -> list[str]:
            return ["red" if place < 30 else "blue" for place in range(start, start + size)]

    toy = Toy()
    found = alone(Twins(40), toy)
    assert toy.calls == [("images", MICRO)] * 10 + [("texts", MICRO)]
    assert found.texts == ["red", "blue"] and found.text_features.shape == (2, 3)
    assert found.picture_of.tolist() == [i % 5 for i in range(40)]


def test_a_limit_is_spread_over_the_set() -> None:
    assert chosen(10, 4).tolist() == [0, 2, 5, 7]
    assert chosen(3, 4).tolist() == chosen(3, 0).tolist() == [0, 1, 2]
    pairs = Painted(40)
    found, every = alone(pairs, limit=10), alone(Painted(40))
    assert found.positions.tolist() == list(range(0, 40, 4))
    assert torch.allclose(found.images, every.images[::4], atol=1e-6)
    assert sum(size for _, size in pairs.reads) == 10


def test_features_that_are_not_finite_say_that_the_model_has_diverged() -> None:
    toy = Toy()
    toy.table[:] = torch.nan
    with pytest.raises(Diverged, match="features of held-out texts are not finite"):
        alone(Painted(5), toy)
