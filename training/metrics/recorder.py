"""Recorder: the figures of a run, for scripts (metrics.jsonl) and for eyes (TensorBoard)."""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import TrainingError
from training.metrics.events import EventTail
from training.metrics.lines import Figure, to_line, truncate

_log = logging.getLogger("trestle.metrics")

_SHOWN_EVENTS = 200  # the newest ones: TensorBoard keeps each text whole


class MetricsFailed(TrainingError):
    """Figures could not be written."""


class Recorder:
    """Writes a run's figures on global rank 0; nobody else constructs one.

    `log`, `text` and `image` hand plain values to a thread and return at once: reading figures from a device is the
    caller's business, once per logging interval. `resumed_from` is the step of the checkpoint that the run continues
    from (None: it starts anew); what an earlier attempt recorded after it disappears from metrics.jsonl and from
    TensorBoard. Raises MetricsFailed, also from `log`, `text`, `image`, `flush` and `close` when the thread could not
    write.
    """

    def __init__(self, run_directory: Path, resumed_from: int | None = None) -> None:
        self.run_directory = Path(run_directory)
        self._lines = self.run_directory / "metrics.jsonl"
        self._tail = EventTail(self.run_directory / "events.jsonl")
        self._events: list[dict[str, Any]] = []
        self._events_shown = False
        self._last_step: int | None = None
        self._error: Exception | None = None
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._start(resumed_from)
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def log(self, step: int, figures: Mapping[str, Figure]) -> None:
        """One line of figures (flat keys, SI units, None: not known) and the same names as TensorBoard scalars.

        Steps must grow: all figures of a step go into one call. Raises ValueError otherwise.
        """
        self._raise_if_failed()
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(f"figures of step {step} after those of step {self._last_step}: one line a step, in order")
        line = to_line(step, figures)
        known = {key: float(value) for key, value in figures.items() if value is not None}
        self._last_step = step
        self._hand_over(lambda: self._write_figures(step, line, known))

    def text(self, step: int, tag: str, text: str) -> None:
        """A TensorBoard text (Markdown), such as the recipe or a sample."""
        self._hand_over(lambda: self._board.add_text(tag, text, step))

    def image(self, step: int, tag: str, picture: NDArray[np.uint8]) -> None:
        """A TensorBoard picture, uint8 `[H, W, 3]`. Raises ValueError for anything else."""
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise ValueError(f"the picture {tag} is {picture.dtype} {list(picture.shape)}, not uint8 [H, W, 3]")
        kept = picture.copy()  # the caller may go on drawing
        self._hand_over(lambda: self._board.add_image(tag, kept, step, dataformats="HWC"))

    def show_events(self, step: int) -> None:
        """Show the table of all events in TensorBoard (the text "events"), if events.jsonl has grown."""
        self._hand_over(lambda: self._write_events(step))

    def rewind(self, step: int) -> None:
        """The run goes back to `step` (after a loss spike): forget what was recorded after it."""
        self.flush()
        self._board.close()
        self._start(step)

    def flush(self) -> None:
        """Return when everything logged so far is in the files."""
        written = threading.Event()
        self._hand_over(lambda: self._board.flush())
        self._work.put(written.set)
        written.wait()
        self._raise_if_failed()

    def close(self) -> None:
        """Write everything and stop."""
        if self._thread.is_alive():
            self._work.put(None)
            self._thread.join()
            self._board.close()
        self._raise_if_failed()

    # ── files ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, resumed_from: int | None) -> None:
        self._last_step = resumed_from
        self._events_shown = False
        try:
            self.run_directory.mkdir(parents=True, exist_ok=True)
            truncate(self._lines, resumed_from)
            self._board = _board(self.run_directory / "tensorboard", resumed_from)
        except OSError as error:
            raise MetricsFailed(_why(self.run_directory, error)) from error

    def _run(self) -> None:
        while (job := self._work.get()) is not None:
            job()

    def _hand_over(self, job: Callable[[], None]) -> None:
        self._raise_if_failed()
        self._work.put(lambda: self._attempt(job))

    def _attempt(self, job: Callable[[], None]) -> None:
        if self._error is not None:
            return
        try:
            job()
            if self._work.empty():
                self._board.flush()  # a killed process then loses nothing that it had time to write
        except Exception as error:  # noqa: BLE001 - nothing is swallowed: the next call in the loop raises it
            self._error = error

    def _write_figures(self, step: int, line: str, known: dict[str, float]) -> None:
        with self._lines.open("a", encoding="utf-8") as file:
            file.write(line)
        for key, value in known.items():
            self._board.add_scalar(key, value, step)

    def _write_events(self, step: int) -> None:
        new = self._tail.read()
        if new or not self._events_shown:
            self._events_shown = True
            self._events = [*self._events, *new][-_SHOWN_EVENTS:]
            self._board.add_text("events", _table(self._events), step)

    def _raise_if_failed(self) -> None:
        error = self._error
        if isinstance(error, OSError):
            raise MetricsFailed(_why(self.run_directory, error)) from error
        if error is not None:
            raise error


def _why(directory: Path, error: OSError) -> str:
    return f"figures cannot be written to {directory}: {error.strerror or error}"


def _board(directory: Path, resumed_from: int | None) -> Any:
    """TensorBoard's writer. Readers drop what files of earlier attempts hold from `purge_step` on."""
    # TensorBoard imports TensorFlow wherever it is installed, for its file functions alone. This is its own switch.
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))
    from torch.utils.tensorboard import SummaryWriter

    _wait_for_a_later_name(directory)
    # Steps begin at 0: a new run purges everything, should its folder not be empty.
    return SummaryWriter(str(directory), purge_step=0 if resumed_from is None else resumed_from + 1)


def _wait_for_a_later_name(directory: Path) -> None:
    """TensorBoard reads files in the order of their names, which begin with the second of their creation.

    A restart within that second would be read before the attempt that it follows: let the second pass.
    """
    names = (path.name.split(".") for path in directory.glob("events.out.tfevents.*"))
    latest = max((int(name[3]) for name in names if len(name) > 3 and name[3].isdigit()), default=0)
    ahead = latest + 1 - time.time()
    if ahead > 2:
        _log.warning("%s: this machine's clock is %.0f s behind; TensorBoard may mix up attempts", directory, ahead)
    elif ahead > 0:
        time.sleep(ahead)


def _table(events: list[dict[str, Any]]) -> str:
    lines = ["| time | event | |", "| --- | --- | --- |"]
    for event in events:
        rest = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("time", "event"))
        cells = (str(cell).replace("|", "\\|").replace("\n", " ") for cell in (event["time"], event["event"], rest))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
