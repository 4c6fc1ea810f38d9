"""Watching a run: figures, events and the console line, all off the hot path.

- `recorder`  Recorder: metrics.jsonl and TensorBoard of global rank 0
- `lines`     metrics.jsonl as a file: what a line looks like, and how a resumed run cuts off what was lost
- `events`    EventLog and EventTail: events.jsonl
- `console`   format_line: one line for the eyes
- `mfu`       model FLOPs utilisation against published peaks
- `clock`     StepClock and goodput: where the time went
"""

from training.metrics.clock import StepClock, goodput
from training.metrics.console import format_line
from training.metrics.events import EventLog, EventTail, read_events
from training.metrics.mfu import mfu, peak_flops
from training.metrics.recorder import MetricsFailed, Recorder

__all__ = [
    "EventLog",
    "EventTail",
    "MetricsFailed",
    "Recorder",
    "StepClock",
    "format_line",
    "goodput",
    "mfu",
    "peak_flops",
    "read_events",
]
