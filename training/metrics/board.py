"""TensorBoard's event file, written by the one thread that calls: its own writer dies with the first full disk."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
import types
from collections.abc import Mapping
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.metrics.patient_file import PatientFile

_log = logging.getLogger("trestle.metrics")
_numbers = count()


def without_tensorflow() -> None:
    """To be called before TensorBoard is imported: it imports TensorFlow wherever that is installed, for its file
    functions alone. This is its own switch.
    """
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))


class Board:
    """One attempt's points. Readers drop what files of earlier attempts hold after step `resumed_from` (None: all).

    Nothing touches the disk before `file.write()`, the directory apart, which is read for the file's name.
    """

    def __init__(self, directory: Path, resumed_from: int | None) -> None:
        without_tensorflow()
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from torch.utils.tensorboard import summary

        self._event, self._summary = Event, summary
        _wait_for_a_later_name(directory)
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self.file = PatientFile(directory / f"events.out.tfevents.{name}")
        # As torch's SummaryWriter says it. Steps begin at 0: a new run purges everything, should it not be empty.
        purge = 0 if resumed_from is None else resumed_from + 1
        self._add(file_version="brain.Event:2")
        self._add(step=purge, file_version="brain.Event:2")
        self._add(step=purge, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        for tag, value in values.items():
            self._add(step=step, summary=self._summary.scalar(tag, value))

    def text(self, step: int, tag: str, text: str) -> None:
        """A text (Markdown)."""
        self._add(step=step, summary=self._summary.text(tag, text))

    def image(self, step: int, tag: str, picture: NDArray[np.uint8]) -> None:
        """A picture `[H, W, 3]`."""
        self._add(step=step, summary=self._summary.image(tag, picture, dataformats="HWC"))

    def _add(self, **fields: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = BytesIO()
        RecordWriter(record).write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self.file.add(record.getvalue())


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
