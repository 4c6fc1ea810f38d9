"""The ResNet-50 tower: batch norm over all data-parallel ranks is torch's over the whole batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.distributed.launch import run
from tests.modeling.clip_batch_norm_ranks import CHANNELS, fresh, inputs
from tests.modeling.clip_worlds import RESNET, build, loss_and_gradients, pairs

pytestmark = pytest.mark.usefixtures("single_process")


def test_statistics_and_gradients_of_two_uneven_ranks_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    run("tests.modeling.clip_batch_norm_ranks:leave", 2, str(tmp_path), deadline=120)
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]
    theirs = fresh(torch.nn.BatchNorm2d(CHANNELS).double())
    x, grad = (tensor.double() for tensor in inputs())
    x.requires_grad_()
    y = theirs(x)
    y.backward(grad)
    assert torch.allclose(torch.cat([rank["y"] for rank in ranks]).double(), y, atol=2e-4)
    assert x.grad is not None
    assert torch.allclose(torch.cat([rank["x"] for rank in ranks]).double(), x.grad, atol=2e-4)
    for name in ("weight", "bias"):
        assert torch.allclose((ranks[0][name] + ranks[1][name]).double(), getattr(theirs, name).grad, atol=1e-3)
    for rank in ranks:
        for name in ("running_mean", "running_var"):
            assert torch.allclose(rank[name].double(), getattr(theirs, name), rtol=1e-5)


def test_running_statistics_are_parameters_that_training_alone_moves() -> None:
    model = build(RESNET)
    batch = pairs(RESNET)
    statistics = {n: p for n, p in model.named_parameters() if "running_" in n}
    assert len(statistics) == 2 * (3 + 16 * 3 + 4) and not any(p.requires_grad for p in statistics.values())
    start = {name: p.clone() for name, p in statistics.items()}
    model.eval()(*batch)
    assert all(torch.equal(p, start[name]) for name, p in statistics.items())
    loss_and_gradients(model.train(), *batch)
    assert not any(torch.equal(p, start[name]) for name, p in statistics.items())


@pytest.mark.parametrize("how", ["freeze_batch_norm", "lock_image"])
def test_frozen_batch_norm_makes_a_feature_independent_of_its_batch(how: str) -> None:
    config = replace(RESNET, **{how: True})  # type: ignore[arg-type]
    model = build(config)
    images, tokens = pairs(config)
    before = {n: p.clone() for n, p in model.named_parameters() if "running_" in n}
    whole, alone = model(images, tokens)[0], model(images[:1], tokens[:1])[0]
    assert torch.allclose(whole[:1], alone, atol=1e-5)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    with torch.no_grad():
        unfrozen = build(RESNET)
        assert not torch.allclose(unfrozen(images)[0][:1], unfrozen(images[:2])[0][:1], atol=1e-3)


def test_residual_branches_begin_at_nothing() -> None:
    model = build(RESNET)
    gains = [p for n, p in model.named_parameters() if n.startswith("vision.stages") and n.endswith("norm3.weight")]
    assert len(gains) == 16 and not any(gain.any() for gain in gains)
