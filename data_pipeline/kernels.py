"""Functions over arrays of numbers as machine code."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from data_pipeline.errors import EnvironmentFailure


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as machine code: without Python's objects and lock, cached on disk. Raises EnvironmentFailure."""
    import numba

    try:
        kernel: Callable[..., Any] = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError as error:
        raise EnvironmentFailure(f"set NUMBA_CACHE_DIR to a folder that can be written ({error})") from error
    return kernel
