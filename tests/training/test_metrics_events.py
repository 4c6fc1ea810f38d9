"""events.jsonl: appended by many, read while it grows."""

from __future__ import annotations

import json
import multiprocessing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from training.metrics import EventLog, EventTail, PatientEventLog, read_events


def write_many(path: Path, writer: int) -> None:
    log = EventLog(path)
    for number in range(200):
        log.write("noted", writer=writer, number=number, filler="x" * 500)


def test_an_event_carries_its_name_its_time_and_its_fields(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "run" / "events.jsonl")  # the folder is made
    before = datetime.now(UTC)
    written = log.write("failed", rank=3, reason="größer\nals 2 lines")
    (line,) = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    assert json.loads(line) == written
    assert written["event"] == "failed" and written["rank"] == 3
    moment = datetime.fromisoformat(written["time"])
    assert moment.utcoffset() == timedelta(0)
    assert abs((moment - before).total_seconds()) < 5


def test_lines_of_several_processes_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    context = multiprocessing.get_context("forkserver")
    writers = [context.Process(target=write_many, args=(path, writer)) for writer in range(3)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(60)
        assert process.exitcode == 0
    assert len([line for line in path.read_text().splitlines() if line]) == 600
    found = read_events(path)
    for writer in range(3):
        assert [event["number"] for event in found if event["writer"] == writer] == list(range(200))


def test_a_tail_sees_each_event_once_and_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert tail.read() == []
    log = EventLog(path)
    log.write("started")
    assert [event["event"] for event in tail.read()] == ["started"]
    assert tail.read() == []
    half = json.dumps({"event": "failed", "time": "2026-01-01T00:00:00+00:00"})
    with path.open("a") as file:
        file.write(half[:20])
        file.flush()
        assert tail.read() == []
        file.write(half[20:] + "\n")
    assert [event["event"] for event in tail.read()] == ["failed"]


def test_a_fragment_does_not_spoil_the_next_event(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.write("started")
    with path.open("a") as file:
        file.write('{"event": "fai')
    EventLog(path).write("restarted")  # the next attempt's
    assert [event["event"] for event in read_events(path)] == ["started", "restarted"]


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        EventLog(tmp_path / "events.jsonl").write("started")


def test_an_event_that_cannot_be_written_is_told_once_and_written_later_with_its_own_time(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "events.jsonl"
    path.symlink_to("/dev/full")
    log = PatientEventLog(path)
    first = log.write("started", ranks=2)
    second = log.write("checkpointed", step=4)
    path.unlink()
    third = log.write("finished", step=8)
    assert read_events(path) == [first, second, third]
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and "No space left on device" in said[0] and log.retry()
