"""metrics.jsonl as a file."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

_log = logging.getLogger("trestle.metrics")

Figure = float | int | None


def to_line(step: int, figures: Mapping[str, Figure]) -> str:
    """One line: valid JSON, flat. None is null (not known).

    NaN and infinities, which JSON lacks, are the strings "NaN", "Infinity" and "-Infinity": `float()` reads them back.
    """
    return json.dumps({"step": step, **{key: _plain(value) for key, value in figures.items()}}, allow_nan=False) + "\n"


def _plain(value: Figure) -> Figure | str:
    if value is None or isinstance(value, int) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def truncate(path: Path, last_step: int | None) -> int:
    """Drop the lines of steps after `last_step` (None: all), atomically; how many went.

    They belong to an attempt whose work after the checkpoint was lost. A line that a crash cut short goes as well.
    Raises OSError.
    """
    if not path.exists():
        return 0
    draft = path.with_name(f".{path.name}.draft")
    dropped = 0
    with path.open(encoding="utf-8", errors="replace") as old, draft.open("w", encoding="utf-8") as new:
        for line in old:
            step = _step_of(line)
            if step is None:
                _log.warning("%s: dropped a line that is no figures: %.80s", path, line.rstrip())
            if step is None or last_step is None or step > last_step:
                dropped += 1
            else:
                new.write(line)
        new.flush()
        os.fsync(new.fileno())
    draft.replace(path)
    return dropped


def _step_of(line: str) -> int | None:
    if not line.endswith("\n"):
        return None
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if type(step) is int else None
