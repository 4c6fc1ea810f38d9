"""The memory of a rank by formula; tests/distributed/test_memory.py compares it with what real steps take."""

from __future__ import annotations

from training.memory import RankMemory


def test_the_peak_is_what_is_on_the_device_together() -> None:
    memory = RankMemory(weights=1, gradients=2, optimizer=4, activations=8, logits=16, buffers=32, host=64)
    assert memory.peak == 63
