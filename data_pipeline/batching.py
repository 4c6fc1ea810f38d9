"""Durations, batch sizes and the ramp: which samples batch `step` is made of, in closed form.

The ramp is the one of GPT-3 (Brown et al. 2020, section 2.3: "gradually increase the batch size linearly from a small
value (32k tokens) to the full value over the first 4-12 billion tokens") in Megatron-LM's reading: the sizes start,
start + increment, ... each hold for an equal share of the ramp's tokens, then the full size begins.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from typing import Optional

from data_pipeline.errors import BadConfig

_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_DURATION = re.compile(r"\s*(\d[\d_,]*(?:\.\d+)?)\s*([kmbt]?)\s*(steps?|tokens?)?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Duration:
    """A length of training in steps or in tokens: exactly one of the two is set."""

    steps: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.tokens is None):
            raise BadConfig("a duration is either steps or tokens")
        if (self.steps or self.tokens or 0) < 0:
            raise BadConfig("a duration cannot be negative")

    @classmethod
    def parse(cls, text: str | int | Duration) -> Duration:
        """Reads `20`, "300 steps", "375M tokens", "3.2B tokens" (k, M, B, T are powers of ten).

        Raises BadConfig for anything else.
        """
        if isinstance(text, Duration):
            return text
        match = _DURATION.fullmatch(str(text))
        if match is None:
            raise BadConfig(f'"{text}" is no duration: write steps (300) or tokens (375M tokens)')
        number, suffix, unit = match.groups()
        value = Fraction(number.replace("_", "").replace(",", "")) * _SUFFIXES[suffix.lower()]
        if value.denominator != 1:
            raise BadConfig(f'"{text}" is not a whole number of {unit or "steps"}')
        if unit is None and suffix:
            raise BadConfig(f'"{text}": say whether these are steps or tokens')
        return cls(tokens=int(value)) if unit and unit.lower().startswith("token") else cls(steps=int(value))

    def __str__(self) -> str:
        if self.steps is not None:
            return str(self.steps)
        value = self.tokens or 0
        for suffix in ("t", "b", "m", "k"):
            if value and value % _SUFFIXES[suffix] == 0:
                return f"{value // _SUFFIXES[suffix]}{suffix if suffix == 'k' else suffix.upper()} tokens"
        return f"{value} tokens"


@dataclass
class RampConfig:
    """Batch-size ramp: `start`, `start + increment`, ... up to the global batch size."""

    start: int
    """First batch size, in samples."""
    increment: int
    """Samples added each time."""
    over: str
    """Tokens until the full size is reached, for example "4B tokens"."""


@dataclass
class BatchConfig:
    """Batch sizes in samples; the global one is per optimizer step over all ranks."""

    global_batch_size: int
    """Samples in an optimizer step, over all ranks."""
    micro_batch_size: int
    """Samples in one forward pass of one rank."""
    ramp: Optional[RampConfig] = None  # noqa: UP045
    """Smaller batches at the start; null for none."""


class BatchSchedule:
    """Where each batch starts and how large it is. O(sizes) to build, O(log sizes) to ask.

    A batch has size start + j * increment if its first token lies in the j-th of the equal shares of the ramp's
    tokens; sizes so large that a batch jumps over a whole share simply skip a size.
    Raises BadConfig for a ramp that cannot reach the global batch size in whole increments.
    """

    def __init__(self, config: BatchConfig, sequence_length: int) -> None:
        _check(config, sequence_length)
        self.sequence_length = sequence_length
        self._first_step: list[int] = []
        self._first_sample: list[int] = []
        self._size: list[int] = []
        step = sample = 0
        for size, end in _stages(config, sequence_length):
            steps = 0 if end is None else max(0, -((sample - end) // size))  # batches that begin before `end`
            if end is None or steps:
                self._first_step.append(step)
                self._first_sample.append(sample)
                self._size.append(size)
            step += steps
            sample += steps * size

    def start(self, step: int) -> int:
        """First sample number of batch `step`."""
        stage = bisect_right(self._first_step, step) - 1
        return self._first_sample[stage] + (step - self._first_step[stage]) * self._size[stage]

    def size(self, step: int) -> int:
        """Samples in batch `step`."""
        return self._size[bisect_right(self._first_step, step) - 1]

    def size_at(self, sample: int) -> int:
        """Samples in the batch that begins at `sample`: what `size` is, whatever the batches before it were."""
        return self._size[bisect_right(self._first_sample, sample) - 1]

    def sizes(self) -> list[int]:
        """The distinct sizes that occur, ascending."""
        return list(self._size)

    def stages(self) -> list[tuple[int, int]]:
        """(first step, samples a step) of each size in turn."""
        return list(zip(self._first_step, self._size, strict=True))

    def step_of_tokens(self, tokens: int) -> int:
        """The first step that begins at or after `tokens` tokens."""
        sample = -(-tokens // self.sequence_length)
        stage = bisect_right(self._first_sample, sample) - 1
        steps = -((self._first_sample[stage] - sample) // self._size[stage])
        step = self._first_step[stage] + steps
        # A stage's last batch may reach past the next stage's first token: never past its first step.
        return min(step, self._first_step[stage + 1]) if stage + 1 < len(self._first_step) else step


def _stages(config: BatchConfig, sequence_length: int) -> list[tuple[int, int | None]]:
    """(size, first sample number that no longer belongs to it) for each size; None for the last."""
    if config.ramp is None:
        return [(config.global_batch_size, None)]
    sizes = list(range(config.ramp.start, config.global_batch_size, config.ramp.increment))
    tokens = Duration.parse(config.ramp.over).tokens or 0
    ends = [-(-(j + 1) * tokens // (len(sizes) * sequence_length)) for j in range(len(sizes))]
    return [*zip(sizes, ends, strict=True), (config.global_batch_size, None)]


def _check(config: BatchConfig, sequence_length: int) -> None:
    if config.global_batch_size < 1 or config.micro_batch_size < 1 or sequence_length < 1:
        raise BadConfig("batch.global_batch_size, batch.micro_batch_size and model.sequence_length must be at least 1")
    ramp = config.ramp
    if ramp is None:
        return
    if ramp.start < 1 or ramp.increment < 1:
        raise BadConfig("batch.ramp.start and batch.ramp.increment must be at least 1")
    span = config.global_batch_size - ramp.start
    if span < 0 or span % ramp.increment:
        raise BadConfig(
            f"batch.ramp goes from {ramp.start} in steps of {ramp.increment} and misses batch.global_batch_size "
            f"{config.global_batch_size}: the difference must be a multiple of the increment"
        )
    if Duration.parse(ramp.over).tokens is None:
        raise BadConfig(f'batch.ramp.over is "{ramp.over}": give it in tokens, such as "4B tokens"')
