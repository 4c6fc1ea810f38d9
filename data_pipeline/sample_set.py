"""What a mixed stream needs to know of a shard set, whatever its samples are."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class SampleSet(Protocol):
    """A shard set of text (`shard_reader.ShardSet`) or of pairs (`pairs.reader.PairSet`)."""

    name: str
    location: str
    manifest_sha256: str
    tokenizer_sha256: str
    samples: int
    rows_per_member: int
    samples_per_damage: int
    """Samples that are found damaged, and are replaced, together."""
    remote: bool

    def fetch_ahead(self, positions: NDArray[np.int64]) -> None:
        """Begins to fetch the members of samples that will be read soon; returns at once."""

    def close(self) -> None:
        """Closes the files that are open; reading opens them again."""
