"""The contrastive losses on one to four real ranks are those of one process that holds every similarity."""

from __future__ import annotations

import itertools
from math import log

import pytest
import torch

from tests.distributed.launch import run
from tests.modeling.contrastive_ranks import LOSSES, Case, as_arguments
from tests.modeling.contrastive_reference import errors, reference

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
    ranks = run("tests.modeling.contrastive_ranks:share", world_size, as_arguments(asked), deadline=120)
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
