"""Two real tensor-parallel ranks: the same loss, gradients and tokens as one, and dropout that agrees where it must."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modeling.gpt import network
from tests.distributed.launch import run
from tests.modeling.two_ranks import LIKES, generated, pieces
from tests.modeling.worlds import build, loss_and_gradients, sample, world_of_one

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    folder = tmp_path_factory.mktemp("two_ranks")
    run("tests.modeling.two_ranks:leave", 2, str(folder), deadline=240)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module", params=sorted(LIKES))
def alone(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    config = LIKES[request.param]
    with world_of_one():
        model = build(config)
        loss, gradients = loss_and_gradients(model, sample(config))
        return request.param, {"loss": loss, "gradients": pieces(model, gradients), "before": generated(model)}


@pytest.mark.parametrize("sequence", [False, True])
def test_loss_is_that_of_one_rank(ranks: Ranks, alone: tuple[str, dict[str, Any]], sequence: bool) -> None:
    name, expected = alone
    for rank in ranks:
        assert rank[f"{name}-{sequence}"]["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.parametrize("sequence", [False, True])
def test_gradients_put_together_are_those_of_one_rank(
    ranks: Ranks, alone: tuple[str, dict[str, Any]], sequence: bool
) -> None:
    name, expected = alone
    for parameter, (shape, _, whole) in expected["gradients"].items():
        if sequence and ("norm" in parameter or is_row_parallel_bias(parameter)):
            # Each rank has its part of the sequence: the engine sums these, and here the test does.
            assembled = sum(rank[f"{name}-{sequence}"]["gradients"][parameter][2] for rank in ranks)
        else:
            assembled = torch.full(shape, torch.nan)
            for rank in ranks:
                _, offset, values = rank[f"{name}-{sequence}"]["gradients"][parameter]
                box = tuple(slice(low, low + size) for low, size in zip(offset, values.shape, strict=True))
                assembled[box] = values
        assert isinstance(assembled, torch.Tensor)
        assert (assembled - whole).abs().max() <= 1e-4 * whole.abs().max(), parameter


def is_row_parallel_bias(parameter: str) -> bool:
    return parameter.endswith(("linear_proj.bias", "linear_fc2.bias"))


@pytest.mark.parametrize("sequence", [False, True])
def test_both_ranks_draw_the_tokens_of_one(ranks: Ranks, alone: tuple[str, dict[str, Any]], sequence: bool) -> None:
    name, expected = alone
    assert len(set(expected["before"]["greedy"])) > 2
    for rank in ranks:
        assert rank[f"{name}-{sequence}"]["before"] == expected["before"]


def test_generation_leaves_the_layouts_running_as_it_was(ranks: Ranks) -> None:
    for rank in ranks:
        for name in LIKES:
            for sequence in (False, True):
                assert rank[f"{name}-{sequence}"]["loss_after"] == rank[f"{name}-{sequence}"]["loss"]


def test_compiled_layers_give_the_same_loss(ranks: Ranks) -> None:
    for rank in ranks:
        assert rank["compiled"] == pytest.approx(rank["llama-False"]["loss"], rel=1e-5)


def test_hidden_dropout_agrees_outside_the_tensor_parallel_regions(ranks: Ranks) -> None:
    first, second = (rank["dropout-False"]["activations"] for rank in ranks)
    assert len(first) == 1 + 2
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    dropped = (first[0] == 0).float().mean()
    assert 0.4 < dropped < 0.6


def test_attention_dropout_differs_between_ranks_and_heads(ranks: Ranks) -> None:
    masks = [rank["dropout-False"]["attention"][:, head] for rank in ranks for head in range(2)]
    for i, mask in enumerate(masks):
        assert mask.any() and not torch.equal(mask, torch.ones(8, 8, dtype=torch.bool).tril())
        assert not any(torch.equal(mask, other) for other in masks[i + 1 :])


def test_hidden_dropout_differs_where_the_sequence_is_divided(ranks: Ranks) -> None:
    first, second = (rank["dropout-True"]["activations"][0] == 0 for rank in ranks)
    assert first.shape[0] == 8  # half of the sequence
    assert 0.4 < first.float().mean() < 0.6
    assert not torch.equal(first, second)


def test_describe_covers_every_parameter_of_a_rank() -> None:
    with world_of_one():
        model = build(LIKES["gpt2"])
        assert list(network.describe(model)) == [name for name, _ in model.named_parameters()]
