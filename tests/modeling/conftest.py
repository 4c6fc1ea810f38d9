"""Fixtures of the room's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.modeling.worlds import world_of_one


@pytest.fixture(scope="module")
def single_process() -> Iterator[None]:
    """A world of one rank for a module's tests."""
    torch.set_num_threads(1)
    with world_of_one():
        yield
