"""Figures reach metrics.jsonl and TensorBoard, once, whatever happens to the attempts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginEventAccumulator

from training.metrics import EventLog, MetricsFailed, Recorder
from training.metrics.lines import truncate
from training.metrics.patient_file import PatientFile


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def board(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in board(run).Scalars(tag)]


def texts(run: Path, tag: str) -> list[tuple[int, str]]:
    """As TensorBoard's text page sees them: unlike EventAccumulator, its own reader forgets the texts of lost steps."""
    found = PluginEventAccumulator(str(run / "tensorboard"), tensor_size_guidance={"text": 0})
    found.Reload()
    events = found.Tensors(f"{tag}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events]


def test_the_same_names_and_values_stand_in_both_places(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.log(10, {"tokens": 4096, "loss": 2.5, "mfu": None})
    recorder.log(20, {"tokens": 8192, "loss": float("nan"), "grad_norm": float("inf"), "mfu": None})
    recorder.text(20, "recipe", "model: {family: gpt}")
    recorder.close()
    assert lines(tmp_path) == [
        {"step": 10, "tokens": 4096, "loss": 2.5, "mfu": None},
        {"step": 20, "tokens": 8192, "loss": "NaN", "grad_norm": "Infinity", "mfu": None},
    ]
    assert scalars(tmp_path, "tokens") == [(10, 4096.0), (20, 8192.0)]
    (_, first), (_, second) = scalars(tmp_path, "loss")
    assert first == 2.5 and second != second
    assert scalars(tmp_path, "grad_norm") == [(20, float("inf"))]
    assert board(tmp_path).Tags()["scalars"] == ["tokens", "loss", "grad_norm"]  # what is not known is no point
    assert texts(tmp_path, "recipe") == [(20, "model: {family: gpt}")]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def images(run: Path, tag: str) -> list[tuple[int, np.ndarray]]:
    """As TensorBoard's image page sees them."""
    found = PluginEventAccumulator(str(run / "tensorboard"), tensor_size_guidance={"images": 0})
    found.Reload()
    if tag not in found.Tags()["tensors"]:
        return []
    events = [(event.step, event.tensor_proto.string_val) for event in found.Tensors(tag)]
    return [(step, np.asarray(Image.open(BytesIO(values[2])))) for step, values in events]  # after width and height


def test_a_picture_arrives_as_it_was_when_it_was_given(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    given = picture.copy()
    recorder.image(20, "retrieval/digits/similarity", picture)
    picture[:] = 0
    recorder.image(30, "retrieval/digits/similarity", picture)
    for wrong in (picture.astype(np.float32), picture[..., :1], picture[0], picture[:0]):
        with pytest.raises(ValueError, match=r"not uint8 \[H, W, 3\]"):
            recorder.image(40, "wrong", wrong)
    recorder.close()
    (step, first), (later, second) = images(tmp_path, "retrieval/digits/similarity")
    assert (step, later) == (20, 30)
    assert np.array_equal(first, given) and not second.any()
    resumed = Recorder(tmp_path, resumed_from=20)
    resumed.close()
    assert [step for step, _ in images(tmp_path, "retrieval/digits/similarity")] == [20]


def test_after_a_resume_the_lost_attempts_steps_appear_once(tmp_path: Path) -> None:
    first = Recorder(tmp_path)
    for step in (10, 20, 30, 40):
        first.log(step, {"loss": float(step)})
    first.text(40, "sample", "lost")
    first.close()
    second = Recorder(tmp_path, resumed_from=20)
    for step in (30, 40, 50):
        second.log(step, {"loss": step + 0.5})
    second.close()
    expected = [(10, 10.0), (20, 20.0), (30, 30.5), (40, 40.5), (50, 50.5)]
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == expected
    assert scalars(tmp_path, "loss") == expected
    assert texts(tmp_path, "sample") == []


def test_a_run_that_starts_over_forgets_the_attempt_before_its_first_checkpoint(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        recorder = Recorder(tmp_path)
        recorder.log(0, {"loss": value})
        recorder.log(5, {"loss": value})
        recorder.close()
    assert [line["loss"] for line in lines(tmp_path)] == [2.0, 2.0]
    assert scalars(tmp_path, "loss") == [(0, 2.0), (5, 2.0)]


def test_a_run_that_goes_back_within_one_process_rewrites_its_figures(tmp_path: Path) -> None:
    EventLog(tmp_path / "events.jsonl").write("started")
    recorder = Recorder(tmp_path)
    for step in (10, 20, 30):
        recorder.log(step, {"loss": float(step)})
    recorder.show_events(30)
    recorder.rewind(10)
    recorder.log(20, {"loss": 20.5})
    recorder.show_events(20)
    recorder.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(10, 10.0), (20, 20.5)]
    assert scalars(tmp_path, "loss") == [(10, 10.0), (20, 20.5)]
    assert [step for step, _ in texts(tmp_path, "events")] == [20]


def test_one_line_a_step_in_order(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, resumed_from=3)
    recorder.log(5, {"loss": 1.0})
    for step in (5, 4):
        with pytest.raises(ValueError, match=f"figures of step {step} after those of step 5"):
            recorder.log(step, {"loss": 1.0})
    recorder.close()
    assert len(lines(tmp_path)) == 1


def test_events_of_other_processes_appear_as_text(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    events = EventLog(tmp_path / "events.jsonl")
    recorder.show_events(1)
    recorder.flush()
    events.write("failed", rank=3, reason="killed | by signal 9")
    recorder.show_events(7)
    recorder.flush()
    recorder.show_events(8)  # nothing new, nothing shown
    recorder.flush()
    events.write("restarted", attempt=1)
    recorder.show_events(9)
    recorder.close()
    shown = dict(texts(tmp_path, "events"))
    assert sorted(shown) == [1, 7, 9]
    assert "| failed | rank 3, reason killed \\| by signal 9 |" in shown[7]
    assert "failed" in shown[9] and "| restarted | attempt 1 |" in shown[9]


def test_what_was_flushed_survives_a_kill(tmp_path: Path) -> None:
    script = f"""
        import os, signal
        from pathlib import Path
        from training.metrics import Recorder
        recorder = Recorder(Path({str(tmp_path)!r}))
        recorder.log(1, {{"loss": 3.0}})
        recorder.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=240)
    assert ended.returncode == -9
    assert lines(tmp_path) == [{"step": 1, "loss": 3.0}]
    assert scalars(tmp_path, "loss") == [(1, 3.0)]


def test_tensorflow_is_never_imported_even_where_it_is_installed(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise RuntimeError('imported tensorflow')")
    script = f"""
        import sys
        from pathlib import Path
        from training.metrics import Recorder
        recorder = Recorder(Path({str(tmp_path / "run")!r}))
        recorder.log(1, {{"loss": 3.0}})
        recorder.text(1, "recipe", "x")
        recorder.close()
        assert "tensorflow" not in sys.modules
        print("written")
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert ended.stdout == "written\n", ended.stderr
    assert scalars(tmp_path / "run", "loss") == [(1, 3.0)]


def test_a_full_disk_is_told_once_and_what_it_did_not_take_is_written_later(
    tmp_path: Path,
) -> None:
    """As on a disk: part of what is written is taken, then there is an error, and the file must not keep the part."""
    script = f"""
        import resource, time
        from pathlib import Path
        from training.metrics import Recorder
        run = Path({str(tmp_path)!r})
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        recorder = Recorder(run)
        recorder.log(1, {{"loss": 1.0}})
        recorder.flush()
        full = (run / "metrics.jsonl").stat().st_size + 10
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, hard))
        for step in range(2, 6):
            recorder.log(step, {{"loss": float(step)}})
            recorder.flush()
        deadline = time.monotonic() + 60
        while len((run / "metrics.jsonl").read_text().splitlines()) != 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # the thread tries once more for the last flush itself, and takes the part back
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        recorder.log(6, {{"loss": 6.0}})
        recorder.close()
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert scalars(tmp_path, "loss") == [(step, float(step)) for step in range(1, 7)]
    told = ended.stdout.splitlines()
    assert len(told) == 2 and ended.stderr == ""
    assert "cannot be written" in told[0] and "File too large; training goes on" in told[0]
    assert told[1] == "trestle: figures are written again"


def test_figures_that_no_disk_has_taken_by_the_end_are_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(tmp_path)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    for step in (1, 2):
        recorder.log(step, {"loss": 3.0})
    recorder.close()
    told = capfd.readouterr().out.splitlines()
    assert len(told) == 2 and "No space left on device; training goes on" in told[0]
    assert told[1].startswith("trestle: the last 2 lines of ") and told[1].endswith("could not be written")


def test_what_waits_for_a_disk_is_bounded_and_forgotten_when_the_run_goes_back(tmp_path: Path) -> None:
    file = PatientFile(tmp_path / "absent" / "figures", kept_bytes=10)
    for piece in (b"0123", b"4567", b"89ab"):
        file.add(piece)
    assert (file.waiting, file.lost) == (2, 1)
    file.keep(lambda piece: piece != b"4567")
    file.write()
    assert file.path.read_bytes() == b"89ab" and not file.waiting


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MetricsFailed, match="cannot be written") as caught:
        Recorder(tmp_path / "file")
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)


def test_logging_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    """The thread is held up by a pipe that nobody reads; the caller must not notice."""
    recorder = Recorder(tmp_path)
    os.mkfifo(tmp_path / "metrics.jsonl")
    begun = time.monotonic()
    for step in range(1, 101):
        recorder.log(step, {"loss": 1.0})
    assert time.monotonic() - begun < 10.0
    reader = os.open(tmp_path / "metrics.jsonl", os.O_RDWR)  # both ends: it never closes under the writer
    recorder.close()
    written = os.read(reader, 1 << 16).decode().splitlines()
    os.close(reader)
    assert [json.loads(line)["step"] for line in written] == list(range(1, 101))


@pytest.mark.parametrize(
    ("text", "last_step", "kept"),
    [
        ('{"step": 1}\n{"step": 2}\n{"step": 3}\n', 2, [1, 2]),
        ('{"step": 1}\n{"step": 2}\n', None, []),
        ('{"step": 1}\n{"step": 2, "lo', 9, [1]),  # cut short by a crash
        ('{"step": 1}\n{"step": 2}', 9, [1]),  # its end is missing: the next line would run into it
        ('{"step": 1}\nnoise\n[]\n{"step": "2"}\n\n{"step": 3}\n', 9, [1, 3]),
        ("", 9, []),
    ],
)
def test_lines_of_lost_steps_and_torn_lines_go(
    tmp_path: Path, text: str, last_step: int | None, kept: list[int]
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    truncate(path, last_step)
    assert [line["step"] for line in lines(tmp_path)] == kept
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
