"""How long a rank works for a step, waiting for other ranks left out as far as it can be."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch

from training.metrics import StepClock


class OwnWork:
    """Data and forward + backward of the steps since the last `take`.

    On a CPU by the host's clock; on a GPU, which the host runs ahead of, between two CUDA events a step.
    """

    def __init__(self, clock: StepClock, device: torch.device) -> None:
        self._clock = clock
        self._device = device
        self._pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._steps = 0
        self._seen = self._host()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step's forward and backward."""
        self._steps += 1
        if self._device.type != "cuda":
            yield
            return
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        yield
        pair[1].record()
        self._pairs.append(pair)

    def take(self) -> float:
        """Seconds a step; on a GPU waits for the last step's backward. 0 if there was no step."""
        before, self._seen = self._seen, self._host()
        seconds = self._seen - before
        if self._pairs:
            self._pairs[-1][1].synchronize()
            seconds += sum(begin.elapsed_time(end) for begin, end in self._pairs) / 1e3
            self._pairs.clear()
        steps, self._steps = self._steps, 0
        return seconds / steps if steps else 0.0

    def _host(self) -> float:
        names = ("data",) if self._device.type == "cuda" else ("data", "forward_backward")
        return sum(self._clock.seconds_in(name) for name in names)


class Probe:
    """The same small piece of work on every rank, done alone: a few matrix products."""

    TIMES = 5

    def __init__(self, device: torch.device) -> None:
        size, dtype = (4096, torch.bfloat16) if device.type == "cuda" else (256, torch.float32)
        self._matrix = torch.ones(size, size, dtype=dtype, device=device)
        self._device = device

    def seconds(self) -> float:
        """The median of a few products, once the device has nothing else to do."""
        return median([self._once() for _ in range(self.TIMES + 1)][1:])

    def _once(self) -> float:
        self._wait()
        begun = time.monotonic()
        torch.mm(self._matrix, self._matrix)
        self._wait()
        return time.monotonic() - begun

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
