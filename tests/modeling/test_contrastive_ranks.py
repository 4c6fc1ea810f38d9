"""The contrastive losses on one to four real ranks are those of one process that holds every similarity."""

from __future__ import annotations

import itertools
from math import log
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.distributed.launch import run
from tests.modeling.contrastive_ranks import LOSSES, Case, as_arguments, projection_and_scale
from tests.modeling.contrastive_reference import errors, pairs, reference

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
# Even, uneven with the last one short, and one rank without any pair.
COUNTS = {
    1: [[23], [1]],
    2: [[8, 8], [17, 6], [0, 9]],
    3: [[7, 7, 7], [9, 9, 4], [5, 0, 6]],
    4: [[6, 6, 6, 6], [8, 8, 8, 1], [7, 0, 5, 3]],
}
SCALES = [(1 / 0.07, 1.0), (100.0, 0.05)]  # at the start of training, and its end: pairs aligned, at the largest scale


def cases(world_size: int) -> list[Case]:
    return [
        Case(loss, counts, log(scale), spread, tile, dtype)
        for loss, counts, (scale, spread), (tile, dtype) in itertools.product(
            LOSSES, COUNTS[world_size], SCALES, [(4, "float64"), (5, "float32"), (None, "float32")]
        )
    ]


@pytest.mark.parametrize("world_size", sorted(COUNTS))
def test_ranks_together_give_the_loss_and_gradients_of_one_process(world_size: int) -> None:
    asked = cases(world_size)
    answers = run("tests.modeling.contrastive_ranks:share", world_size, as_arguments(asked), deadline=120)
    ranks = [answer["cases"] for answer in answers]
    for number, case in enumerate(asked):
        expected = reference(case.loss, *case.pairs, case.log_scale)
        parts = [{name: torch.tensor(x, dtype=torch.float64) for name, x in rank[number].items()} for rank in ranks]
        for name in expected:
            if expected[name].ndim == 0:
                assert len({rank[number][name] for rank in ranks}) == 1, (case, name)
        # Nothing is scaled here: a gradient off by the number of ranks is off.
        found = {
            name: torch.cat([part[name].view(-1, *value.shape[1:]) for part in parts]) if value.ndim else parts[0][name]
            for name, value in expected.items()
        }
        deviations = errors(found, expected)
        assert max(deviations.values()) <= TOLERANCE[case.dtype], (case, deviations)
    parameters_behind_the_wrapper_get_the_gradients_of_one_process(answers)
    if world_size > 1:
        assert len({answer["sizes"] for answer in answers}) == 1 and "one size on all ranks" in answers[0]["sizes"]
    assert all("at least one pair" in answer["nothing"] for answer in answers)


def parameters_behind_the_wrapper_get_the_gradients_of_one_process(answers: list[dict[str, Any]]) -> None:
    """Summed over the ranks, each parameter's; against autograd through every similarity."""
    first, second = pairs(13, 12)
    order = [i for rank in range(len(answers)) for i in range(rank, 13, len(answers))]
    parameters = projection_and_scale()
    a, b = (F.normalize(x[order].double() @ parameters[0]) for x in (first, second))
    similarities, labels = parameters[1].exp() * a @ b.t(), torch.arange(13)
    loss = 0.5 * (F.cross_entropy(similarities, labels) + F.cross_entropy(similarities.t(), labels))
    loss.backward()
    for number, parameter in enumerate(parameters):
        found = sum(torch.tensor(answer["gradients"][number], dtype=torch.float64) for answer in answers)
        assert parameter.grad is not None and isinstance(found, torch.Tensor)
        assert (found - parameter.grad).abs().max() <= 1e-12 * parameter.grad.abs().max()
    assert all(answer["loss"] == pytest.approx(loss.item(), rel=1e-12) for answer in answers)
