"""The recipe's `deduplicate:` section: what counts as a near-duplicate, and how much memory finding them may take."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.errors import BadConfig

_GIB = 1 << 30


@dataclass
class DedupConfig:
    """Near-duplicates: MinHash candidates by locality-sensitive hashing, verified by their exact Jaccard similarity."""

    shingle_words: int = 5
    """Words of a shingle; documents are compared as sets of shingles."""
    bands: int = 16
    """Bands of the signature. A pair at similarity s becomes a candidate with probability 1 - (1 - s^rows)^bands."""
    rows: int = 8
    """Minima of a band; bands x rows hash functions in all."""
    threshold: float = 0.80
    """Least Jaccard similarity of the shingle sets of two near-duplicates."""
    memory_gib: float = 4.0
    """GiB of memory for the data of all workers together. Does not change the output."""
    seed: int = 1
    """Seed of the hash functions."""

    def check(self) -> None:
        """Raises BadConfig for a value that cannot work."""
        for name in ("shingle_words", "bands", "rows"):
            if getattr(self, name) < 1:
                raise BadConfig(f"deduplicate.{name} is {getattr(self, name)}, and must be at least 1")
        if self.shingle_words > 1000:
            raise BadConfig(f"deduplicate.shingle_words is {self.shingle_words}, and must be at most 1000; 5 is usual")
        if self.bands * self.rows > 4096:
            product = self.bands * self.rows
            raise BadConfig(f"deduplicate: bands x rows is {product}, and must be at most 4096; 16 x 8 is usual")
        if not 0 < self.threshold <= 1:
            raise BadConfig(f"deduplicate.threshold is {self.threshold}, and must be above 0 and at most 1")
        if not 0 < self.memory_gib < 1e9:
            raise BadConfig(f"deduplicate.memory_gib is {self.memory_gib}, and must be above 0")
        if not 0 <= self.seed < 1 << 63:
            raise BadConfig(f"deduplicate.seed is {self.seed}, and must be at least 0 and less than 2^63")

    def task_bytes(self, workers: int) -> int:
        """Bytes of memory for the data of one of `workers` tasks that run at once."""
        return max(1, int(self.memory_gib * _GIB / max(1, workers)))
