"""What is read in the place of a damaged member: another one of its corpus. A pure function, so that every rank, and a
resume, replace it by the same, and the order in which damage is found does not matter.
"""

from __future__ import annotations

from collections.abc import Set

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DamagedShard
from data_pipeline.permutation import derive_key, permute

_CANDIDATES = 16


def substituted(
    positions: NDArray[np.int64], damaged: Set[int], name: str, samples: int, rows: int
) -> NDArray[np.int64]:
    """Positions [n] of a corpus's samples, those in `damaged` members replaced.

    rows: samples in a member; 1 where each is one by itself, as pairs are. Each member has its own order of those that
    may stand in for it; the first that is not damaged is taken. Raises DamagedShard if a whole series of them is: then
    it is the store that is gone.
    """
    members, row = np.divmod(positions, rows)
    count = -(-samples // rows)
    result = positions.copy()
    for member in np.unique(members).tolist():
        if member in damaged:
            other = _other(member, damaged, name, count)
            there = min(rows, samples - other * rows)
            mine = members == member
            result[mine] = other * rows + row[mine] % there
    return result


def _other(member: int, damaged: Set[int], name: str, count: int) -> int:
    candidates = np.arange(min(count, _CANDIDATES + 1))
    keys = np.full(len(candidates), derive_key(0, "substitute", name, member))
    for candidate in permute(candidates, keys, count).tolist():
        if candidate != member and candidate not in damaged:
            return int(candidate)
    tried = min(count, _CANDIDATES + 1) - 1
    raise DamagedShard(
        f"member or pair {member:09d} of {name} and the {tried} that could stand in for it are all damaged or out of "
        "reach: mend the shards or the way to them"
    )
