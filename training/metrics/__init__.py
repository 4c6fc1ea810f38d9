"""Watching a run: figures, events and the console line, all off the hot path.

- `recorder`  Recorder: metrics.jsonl and TensorBoard of global rank 0
- `lines`     metrics.jsonl as a file: what a line looks like, and how a resumed run cuts off what was lost
- `patient_file`, `board`  what Recorder writes to: appended whole or not at all, kept while a disk takes nothing
- `events`    EventLog, PatientEventLog and EventTail: events.jsonl
- `console`   format_line: one line for the eyes
- `mfu`       model FLOPs utilisation against published peaks
- `clock`     StepClock: where the time of one process went
- `goodput`   account: where the time of all attempts went (pure); `ledger` keeps what they report
"""

from training.metrics.clock import StepClock
from training.metrics.console import format_line
from training.metrics.events import EventLog, EventTail, PatientEventLog, read_events
from training.metrics.ledger import Ledger, goodput_in_words
from training.metrics.mfu import mfu, peak_flops
from training.metrics.recorder import MetricsFailed, Recorder

__all__ = [
    "EventLog",
    "EventTail",
    "Ledger",
    "MetricsFailed",
    "PatientEventLog",
    "Recorder",
    "StepClock",
    "format_line",
    "goodput_in_words",
    "mfu",
    "peak_flops",
    "read_events",
]
