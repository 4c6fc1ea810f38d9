"""Recorder: the figures of a run, for scripts (metrics.jsonl) and for eyes (TensorBoard)."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import TrainingError
from training.metrics.board import Board
from training.metrics.events import EventTail
from training.metrics.lines import Figure, step_of, to_line, truncate
from training.metrics.patient_file import PatientFile

_SHOWN_EVENTS = 200  # the newest ones: TensorBoard keeps each text whole
_QUEUED = 20_000  # jobs that may wait for a disk that does not answer
_LAST_SECONDS = 60.0  # that a disk is given at the end


class MetricsFailed(TrainingError):
    """The run's folder cannot be made."""


def _nothing() -> dict[str, Figure]:
    return {}


class Recorder:
    """Writes a run's figures on global rank 0; nobody else constructs one.

    `log`, `text` and `image` hand plain values to a thread and return at once: reading figures from a device is the
    caller's business, once per logging interval. `resumed_from` is the step of the checkpoint that the run continues
    from (None: it starts anew); what an earlier attempt recorded after it disappears from metrics.jsonl and from
    TensorBoard. A disk that is full or does not answer is no reason to stop: it is told once, and what was to be
    written is kept (PatientFile says how much) until it can be. Raises MetricsFailed if there cannot be such a folder.
    """

    def __init__(self, run_directory: Path, resumed_from: int | None = None) -> None:
        self.run_directory = Path(run_directory)
        self._tail = EventTail(self.run_directory / "events.jsonl")
        self._events: list[dict[str, Any]] = []
        self._last_step = resumed_from
        self._error: Exception | None = None
        self._trouble: OSError | None = None
        self._dropped = 0
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        try:
            self.run_directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = f"figures cannot be written to {self.run_directory}: {error.strerror or error}"
            raise MetricsFailed(why) from error
        self._figures = PatientFile(self.run_directory / "metrics.jsonl")
        self._begin(resumed_from)
        self._attempt(lambda: None)
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def log(
        self, step: int, figures: Mapping[str, Figure], more: Callable[[], Mapping[str, Figure]] = _nothing
    ) -> None:
        """One line of figures (flat keys, SI units, None: not known) and the same names as TensorBoard scalars.

        `more` gives further ones, on the thread: what has to be read from a disk first. Steps must grow: all figures
        of a step go into one call. Raises ValueError otherwise.
        """
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(f"figures of step {step} after those of step {self._last_step}: one line a step, in order")
        self._last_step = step
        given = dict(figures)
        self._hand_over(lambda: self._add_figures(step, given, more))

    def text(self, step: int, tag: str, text: str) -> None:
        """A TensorBoard text (Markdown), such as the recipe or a sample."""
        self._hand_over(lambda: self._board.text(step, tag, text))

    def image(self, step: int, tag: str, picture: NDArray[np.uint8]) -> None:
        """A TensorBoard picture, uint8 `[H, W, 3]`. Raises ValueError for anything else."""
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise ValueError(f"the picture {tag} is {picture.dtype} {list(picture.shape)}, not uint8 [H, W, 3]")
        kept = picture.copy()  # the caller may go on drawing
        self._hand_over(lambda: self._board.image(step, tag, kept))

    def show_events(self, step: int) -> None:
        """Show the table of all events in TensorBoard (the text "events"), if events.jsonl has grown."""
        self._hand_over(lambda: self._add_events(step))

    def rewind(self, step: int) -> None:
        """The run goes back to `step` (after a loss spike): forget what was recorded after it."""
        self._last_step = step
        self._hand_over(lambda: self._begin(step))

    def flush(self) -> None:
        """Return when everything logged so far is in the files, or has been tried."""
        tried = threading.Event()
        self._work.put(tried.set)
        tried.wait()
        self._raise_if_failed()

    def close(self, last: Callable[[], None] = lambda: None) -> None:
        """Do `last`, write everything and stop. What no disk takes by now is lost, with a line that says so."""
        if self._thread.is_alive():
            self._work.put(last)
            self._work.put(None)
            self._thread.join(_LAST_SECONDS)
            waiting = self._figures.waiting + self._dropped + self._work.qsize()
            if waiting and (self._trouble is not None or self._thread.is_alive()):
                print(f"trestle: the last {waiting} lines of {self._figures.path} could not be written", flush=True)
        self._raise_if_failed()

    # ── files ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, resumed_from: int | None) -> None:
        """Forget what is after `resumed_from`, as soon as the disk lets us."""
        self._cut_after, self._cut_due = resumed_from, True
        self._events_shown = False
        self._figures.keep(lambda line: resumed_from is not None and (step_of(line.decode()) or 0) <= resumed_from)
        self._board = Board(self.run_directory / "tensorboard", resumed_from)

    def _run(self) -> None:
        while (job := self._work.get()) is not None:
            self._attempt(job)

    def _hand_over(self, job: Callable[[], None]) -> None:
        self._raise_if_failed()
        if self._work.qsize() < _QUEUED:
            self._work.put(job)
        else:  # the disk has not answered for very long
            self._dropped += 1

    def _attempt(self, job: Callable[[], None]) -> None:
        if self._error is not None:
            return
        try:
            try:
                job()
            finally:
                self._write()
            if self._trouble is not None:
                self._trouble = None
                lost = self._figures.lost + self._dropped
                print("trestle: figures are written again" + (f"; {lost} lines are lost" if lost else ""), flush=True)
        except OSError as error:
            if self._trouble is None:
                self._trouble = error
                why = f"figures cannot be written to {self.run_directory}: {error.strerror or error}"
                print(f"trestle: {why}; training goes on, and they are written when it is possible again", flush=True)
        except Exception as error:  # noqa: BLE001 - nothing is swallowed: the next call in the loop raises it
            self._error = error

    def _write(self) -> None:
        """Everything at once, so that a killed process loses nothing that it had time to write. Raises OSError."""
        if self._cut_due:
            truncate(self._figures.path, self._cut_after)
            self._cut_due = False
        self._figures.write()
        self._board.file.write()

    def _add_figures(self, step: int, figures: dict[str, Figure], more: Callable[[], Mapping[str, Figure]]) -> None:
        try:
            figures |= more()
        finally:
            self._figures.add(to_line(step, figures).encode())
            self._board.scalars(step, {key: float(value) for key, value in figures.items() if value is not None})

    def _add_events(self, step: int) -> None:
        new = self._tail.read()
        if new or not self._events_shown:
            self._events_shown = True
            self._events = [*self._events, *new][-_SHOWN_EVENTS:]
            self._board.text(step, "events", _table(self._events))

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise self._error


def _table(events: list[dict[str, Any]]) -> str:
    lines = ["| time | event | |", "| --- | --- | --- |"]
    for event in events:
        rest = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("time", "event"))
        cells = (str(cell).replace("|", "\\|").replace("\n", " ") for cell in (event["time"], event["event"], rest))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
