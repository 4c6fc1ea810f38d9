"""The console's line."""

from __future__ import annotations

import math
from collections.abc import Mapping

from training.metrics.lines import Figure

WIDTH = 120


def format_line(figures: Mapping[str, Figure], *, steps: int, checkpoint: int | None) -> str:
    """One line of at most 120 columns (WIDTH) for the figures of a logged step.

    Reads `step`, `loss`, `validation_loss` (if there), `learning_rate`, `tokens_per_second`, `mfu`, and `step_seconds`,
    from which the time left to `steps` follows. `checkpoint` is the step of the last verified one, shown as "saved".
    """
    step = int(figures["step"] or 0)
    seconds = figures.get("step_seconds")
    parts = [
        f"step {step:>{len(str(steps))}}/{steps}",
        f"loss {_number(figures.get('loss'), '.4f')}",
        f"lr {_number(figures.get('learning_rate'), '.2e')}",
        # Of a model of pictures and texts nobody counts tokens.
        f"{_scaled(figures.get('samples_per_second'))} pairs/s"
        if "logit_scale" in figures
        else f"{_scaled(figures.get('tokens_per_second'))} tok/s",
        f"mfu {_percent(figures.get('mfu'))}",
        f"eta {'?' if seconds is None else _span((steps - step) * seconds)}",
        f"saved {'none' if checkpoint is None else checkpoint}",
    ]
    if figures.get("validation_loss") is not None:
        parts.insert(2, f"val {_number(figures['validation_loss'], '.4f')}")
    return "  ".join(parts)[:WIDTH]


def _number(value: Figure, form: str) -> str:
    if value is None:
        return "?"
    text = format(value, form)
    return text if len(text) <= 10 else format(value, ".2e")


def _percent(value: Figure) -> str:
    return "unknown" if value is None else f"{100 * value:.1f}%"


def _scaled(value: Figure) -> str:
    if value is None or not math.isfinite(value):
        return "?"
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.1f}{unit}"
    return f"{value:.0f}"


def _span(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days > 999:
        return ">999d"
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
