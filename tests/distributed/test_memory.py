"""The memory of a rank by formula is within 5 % of the peak of live tensors in whole steps, on every layout."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.launch import run
from tests.distributed.memory_cases import Case, cases, document_of
from tests.distributed.memory_table import Row, rows_of, table_of

WITHIN = 0.05


def outside(cases: list[Case], world_size: int, *, deadline: float) -> str:
    """The rows of a table of predicted and measured peaks that are further apart; none is left out."""
    documents = [document_of(one, world_size) for one in cases]
    by_rank: list[list[dict[str, Any]]] = run(
        "tests.distributed.memory:measure_documents", world_size, documents, deadline=deadline
    )
    rows: list[Row] = [row for one in zip(cases, *by_rank, strict=True) for row in rows_of(one[0], one[1:], "cpu")]
    assert len(rows) == len(cases) * world_size
    return table_of([row for row in rows if abs(row.ratio - 1) > WITHIN])


@pytest.mark.timeout(760 + 60)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_peak_by_formula_is_that_of_real_steps(world_size: int) -> None:
    wrong = outside(cases(world_size), world_size, deadline=760)
    assert not wrong, f"predicted and measured differ:\n{wrong}"
