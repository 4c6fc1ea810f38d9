"""Two real tensor-parallel ranks: features, loss, gradients and initial weights of one, the sequence split or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.launch import run
from tests.modeling.clip_two_ranks import LIKES, pieces
from tests.modeling.clip_worlds import build, loss_and_gradients, pairs
from tests.modeling.worlds import world_of_one

Ranks = list[dict[str, Any]]
CASES = [f"{name}-plain" for name in LIKES] + ["vit-full", "vit-selective"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    folder = tmp_path_factory.mktemp("clip_two_ranks")
    run("tests.modeling.clip_two_ranks:leave", 2, str(folder), deadline=240)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    results = {}
    with world_of_one():
        for name, config in LIKES.items():
            model = build(config)
            outputs, gradients = loss_and_gradients(model, *pairs(config))
            weights = {n: p.detach() for n, p in model.named_parameters()}
            results[name] = {**outputs, "gradients": pieces(model, gradients), "weights": pieces(model, weights)}
    return results


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_features_and_loss_are_those_of_one_rank(
    ranks: Ranks, alone: dict[str, dict[str, Any]], case: str, sequence: bool
) -> None:
    expected = alone[case.rsplit("-", 1)[0]]
    for rank in ranks:
        for output in ("image", "text", "loss"):
            assert torch.allclose(rank[f"{case}-{sequence}"][output], expected[output], rtol=0, atol=1e-5), output


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_gradient_is_that_of_one_rank(
    ranks: Ranks, alone: dict[str, dict[str, Any]], case: str, sequence: bool
) -> None:
    expected = alone[case.rsplit("-", 1)[0]]["gradients"]
    got = [rank[f"{case}-{sequence}"]["gradients"] for rank in ranks]
    assert set(got[0]) == set(expected)
    for name, (shape, _, whole, _) in expected.items():
        partial = got[0][name][3]
        assert partial <= sequence
        for assembled in _assembled([rank[name] for rank in got], shape, partial):
            assert (assembled - whole).abs().max() <= 1e-4 * whole.abs().max(), name


def _assembled(boxes: list[Any], shape: tuple[int, ...], partial: bool) -> list[torch.Tensor]:
    """What every rank holds after the engine has summed what is marked; each rank's own where all have all of it."""
    if partial:
        return [boxes[0][2] + boxes[1][2]]
    if tuple(boxes[0][2].shape) == tuple(shape):
        return [values for _, _, values, _ in boxes]
    whole = torch.full(shape, torch.nan)
    for _, offset, values, _ in boxes:
        whole[tuple(slice(low, low + size) for low, size in zip(offset, values.shape, strict=True))] = values
    return [whole]


def test_initial_weights_do_not_depend_on_the_layout(ranks: Ranks, alone: dict[str, dict[str, Any]]) -> None:
    for name, (shape, _, whole, _) in alone["vit"]["weights"].items():
        for assembled in _assembled([rank["vit-plain-False"]["weights"][name] for rank in ranks], shape, False):
            assert torch.equal(assembled, whole), name


def test_only_the_blocks_own_norms_and_biases_are_partial(ranks: Ranks) -> None:
    partial = {name for name, piece in ranks[0]["vit-plain-True"]["gradients"].items() if piece[3]}
    assert partial
    for name in partial:
        assert ".transformer.layers." in name
        assert "layernorm" in name or name.endswith(("linear_proj.bias", "linear_fc2.bias"))
    assert not any(piece[3] for piece in ranks[0]["vit-plain-False"]["gradients"].values())


def test_locked_tower_has_nothing_to_sum(ranks: Ranks) -> None:
    weights = ranks[0]["locked-plain-True"]["weights"]
    partial = {name.split(".")[0] for name, piece in weights.items() if piece[3]}
    assert partial == {"text"}
