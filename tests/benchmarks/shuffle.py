"""How well the stream is shuffled, against a perfect shuffle: `python -m tests.benchmarks.shuffle`.

A corpus of members of 255 samples (2,049 tokens of two bytes, 1 MiB). For samples that follow each other in an epoch:
how far apart they lie in the shard set, how often they are of one member (and so of the same or neighbouring
documents), how the place of one tells that of the next, and how many members a batch has samples of. Perfect: numpy's
permutation.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shuffling import Shuffle
from tests.benchmarks.common import print_table

ROWS, BATCH = 255, 512


def quality(positions: NDArray[np.int64]) -> dict[str, float]:
    """Figures of one epoch's positions [n]."""
    n = len(positions)
    distance = np.abs(np.diff(positions)).mean()
    members = positions // ROWS
    batches = members[: n // BATCH * BATCH].reshape(-1, BATCH)
    return {
        "distance": float(distance / ((n * n - 1) / (3 * n))),  # the mean of a perfect shuffle
        "same_member": float((np.diff(members) == 0).mean()),
        "correlation": float(np.corrcoef(positions[:-1], positions[1:])[0, 1]),
        "members_of_a_batch": float(np.mean([len(np.unique(batch)) for batch in batches[:200]])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=4000)
    parser.add_argument("--quick", action="store_true", help="a small corpus, only to see that it runs")
    options = parser.parse_args()
    samples = (200 if options.quick else options.members) * ROWS - 17  # the last member is a short one
    orders = {"perfect": np.random.default_rng(0).permutation(samples)}
    for name, window in [("full", None), *((f"windowed, {w} members", w) for w in (16, 64, 256))]:
        orders[name] = Shuffle(window).positions(np.arange(samples), 12345, samples, ROWS)
    rows = []
    for name, positions in orders.items():
        found = quality(positions)
        rows.append(
            [
                name,
                f"{found['distance']:.4f}",
                f"{found['same_member']:.5f}",
                f"{found['correlation']:+.4f}",
                f"{found['members_of_a_batch']:.1f}",
            ]
        )
    print(f"{samples:,} samples in {-(-samples // ROWS):,} members")
    print_table(
        [
            "shuffle",
            "distance of neighbours / perfect",
            "neighbours of one member",
            "correlation",
            f"members of a batch of {BATCH}",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
