"""Where attempts' times are kept: `goodput.json` in a run's folder, which no restart cuts back."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from training.metrics.events import EventTail, read_events
from training.metrics.goodput import AttemptTimes, account, in_words

_log = logging.getLogger("trestle.metrics")

FILE = "goodput.json"


class Ledger:
    """One attempt's entry among those of all attempts; on global rank 0 alone."""

    def __init__(self, folder: Path, attempt: int, step: int, seconds: float) -> None:
        """An attempt that began `seconds` ago and continues after `step` steps."""
        self._path = folder / FILE
        self._tail = EventTail(folder / "events.jsonl")
        self._events = self._tail.read()
        self._before, _ = read_ledger(self._path)
        launch = sum(1 for event in self._events if event["event"] == "started")
        begun = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
        self._own = AttemptTimes(launch, attempt, begun, step, step)
        self.restarts = restarts_after_failures(self._events)

    def figures(self, step: int, useful_seconds: float, spent: Mapping[str, float]) -> dict[str, float]:
        """Report what the attempt has `spent` so far; the figures `goodput` and `goodput/<cause>` of the whole run."""
        self.report(step, useful_seconds, spent)
        self._events += self._tail.read()
        return account(self._events, [*self._before, self._own], useful_seconds).shares()

    def report(self, step: int, useful_seconds: float, spent: Mapping[str, float]) -> None:
        """Note what the attempt has `spent`. If the disk does not take it, the next report says it all."""
        self._own.step = max(self._own.from_step, step)
        self._own.seconds = {name: round(seconds, 4) for name, seconds in spent.items()}
        attempts = [asdict(one) for one in [*self._before, self._own]]
        draft = self._path.with_name(f".{self._path.name}.draft")
        try:
            draft.write_text(json.dumps({"useful_seconds": round(useful_seconds, 4), "attempts": attempts}) + "\n")
            draft.replace(self._path)
        except OSError as error:
            _log.info("%s: %s", self._path, error)


def restarts_after_failures(events: Iterable[Mapping[str, Any]]) -> int:
    """How often ranks were started again since something had failed: not for other nodes to come in or to leave."""
    restarts, failed = 0, False
    for event in events:
        name = event["event"]
        restarts += failed and name == "restarted"
        failed = name == "failed" or (failed and name not in ("started", "restarted"))
    return restarts


def read_ledger(path: Path) -> tuple[list[AttemptTimes], float]:
    """All attempts' times, and the useful seconds at the last report; nothing where no file can be read."""
    try:
        found = json.loads(path.read_text())
        known = {f.name for f in fields(AttemptTimes)}
        attempts = [AttemptTimes(**{k: v for k, v in one.items() if k in known}) for one in found["attempts"]]
        return attempts, float(found["useful_seconds"])
    except FileNotFoundError:
        return [], 0.0
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("%s cannot be read, goodput begins anew: %s", path, error)
        return [], 0.0


def goodput_in_words(folder: Path) -> str | None:
    """Where the time of the run in `folder` went, in one line; None where nothing has been reported."""
    attempts, useful = read_ledger(folder / FILE)
    if not attempts:
        return None
    events: list[dict[str, Any]] = read_events(folder / "events.jsonl")
    starts = sum(1 for event in events if event["event"] in ("started", "restarted"))
    return in_words(account(events, attempts, useful), max(starts, len(attempts)))
