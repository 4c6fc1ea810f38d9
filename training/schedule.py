"""The learning rate as a pure function of the position in the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from data_pipeline.batching import Duration
from training.errors import RecipeError


class Schedule:
    """Linear warm-up to `lr`, then a constant rate, or a cosine or linear decay to `min_lr_ratio * lr`, then constant.

    Positions count what is done *after* the update that the rate is for: update 0 of a warm-up over w steps gets lr/w,
    update w - 1 gets lr, and the update that completes `decay` gets the minimum. `decay` counts from the start of the
    run, warm-up included (None: the whole run, `total`), as in GPT-3: cosine decay to 10 % over 260 billion tokens,
    constant after them, linear warm-up over the first 375 million (Brown et al. 2020, appendix B).

    `tokens_at(n)` says how many tokens the first n steps consume: with a batch-size ramp only the caller knows. It is
    asked once, and only if warm-up and decay are given in different units. Raises RecipeError.
    """

    def __init__(
        self,
        kind: Literal["cosine", "linear", "constant"],
        lr: float,
        *,
        warmup: Duration,
        decay: Duration | None,
        total: Duration,
        min_lr_ratio: float,
        tokens_at: Callable[[int], int],
    ) -> None:
        if kind not in ("cosine", "linear", "constant"):
            raise RecipeError(f"optimizer.schedule is {kind!r}: it is one of cosine, linear, constant")
        if not 0.0 <= min_lr_ratio <= 1.0:
            raise RecipeError(f"optimizer.min_lr_ratio is {min_lr_ratio}: it is a fraction of lr, between 0 and 1")
        self.kind = kind
        self.lr = lr
        self.min_lr = min_lr_ratio * lr
        end = decay or total
        durations = [warmup] if kind == "constant" else [warmup, end]
        self.in_tokens = any(duration.tokens is not None for duration in durations)
        self.warmup = _amount(warmup, self.in_tokens, tokens_at)
        self.decay = _amount(end, self.in_tokens, tokens_at) if kind != "constant" else None
        if self.decay is not None and self.warmup > self.decay:
            raise RecipeError(
                f"optimizer.warmup ({warmup}) is longer than "
                + (f"optimizer.decay ({decay})" if decay else f"the run ({total}), over which the rate decays")
                + ": shorten the warm-up, lengthen the decay, or use schedule constant"
            )

    def learning_rate(self, step: int, tokens: int) -> float:
        """The rate of update number `step` (from 0); `tokens` are those seen after it, its own batch included."""
        position = tokens if self.in_tokens else step + 1
        if position < self.warmup:
            return self.lr * position / self.warmup
        if self.decay is None or position == self.warmup:
            return self.lr
        if position >= self.decay:
            return self.min_lr
        progress = (position - self.warmup) / (self.decay - self.warmup)
        left = 0.5 * (1.0 + math.cos(math.pi * progress)) if self.kind == "cosine" else 1.0 - progress
        return self.min_lr + left * (self.lr - self.min_lr)


def _amount(duration: Duration, in_tokens: bool, tokens_at: Callable[[int], int]) -> int:
    """The duration in tokens or in steps; steps become tokens where the other duration has no steps."""
    if not in_tokens:
        assert duration.steps is not None
        return duration.steps
    return duration.tokens if duration.tokens is not None else tokens_at(duration.steps or 0)
