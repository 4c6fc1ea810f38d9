"""Reads a shard set through a shared cache, batch after batch, for tests that kill it: URL CACHE SIZE BATCHES SEED.

Prints `ready` after the first batch, and at the end the SHA-256 of all tokens.
"""

from __future__ import annotations

import hashlib
import sys

from data_pipeline.config import CacheConfig, DataConfig, ShardSource
from data_pipeline.stream import Prefetcher, Stream


def main(url: str, directory: str, size: str, batches: int, seed: int) -> None:
    stream = Stream(DataConfig(mix=[ShardSource(url)], cache=CacheConfig(directory, size), shuffle="full"), seed)
    digest = hashlib.sha256()
    with Prefetcher(stream, [(16 * number, 16) for number in range(batches)]) as ahead:
        for number, batch in enumerate(ahead):
            digest.update(batch.tokens.tobytes())
            if number == 0:
                print("ready", flush=True)
    print(digest.hexdigest(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
