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
    Where what goes is the end of the file, as it nearly always is, no room on the disk is needed. Raises OSError.
    """
    if not path.exists():
        return 0
    kept_bytes, dropped, only_the_end = 0, 0, True
    with path.open("rb") as old:
        for line in old:
            if _keep(path, line, last_step):
                only_the_end = only_the_end and not dropped
                kept_bytes += len(line)
            else:
                dropped += 1
    if dropped and only_the_end:
        os.truncate(path, kept_bytes)
    elif dropped:
        draft = path.with_name(f".{path.name}.draft")
        with path.open("rb") as old, draft.open("wb") as new:
            new.writelines(line for line in old if _keep(path, line, last_step, tell=False))
            new.flush()
            os.fsync(new.fileno())
        draft.replace(path)
    return dropped


def _keep(path: Path, line: bytes, last_step: int | None, *, tell: bool = True) -> bool:
    step = step_of(line.decode(errors="replace"))
    if step is None and tell:
        _log.warning("%s: dropped a line that is no figures: %.80s", path, line.decode(errors="replace").rstrip())
    return step is not None and last_step is not None and step <= last_step


def step_of(line: str) -> int | None:
    """The step of a whole line, None for anything else."""
    if not line.endswith("\n"):
        return None
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if type(step) is int else None
