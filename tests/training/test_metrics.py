"""The console line, the clock and MFU against values computed by hand."""

from __future__ import annotations

import pytest

from training.metrics import StepClock, format_line, mfu, peak_flops

FIGURES = {"step": 200, "loss": 2.34567, "learning_rate": 5.4321e-4, "tokens_per_second": 12345.6, "step_seconds": 2.5}


def test_the_console_line_says_what_matters() -> None:
    line = format_line(FIGURES | {"mfu": 0.4123}, steps=1000, checkpoint=150)
    assert line == ("step  200/1000  loss 2.3457  lr 5.43e-04  12.3k tok/s  mfu 41.2%  eta 33m20s  saved 150")


def test_what_is_not_known_is_said_to_be_unknown() -> None:
    line = format_line({"step": 5, "loss": float("nan"), "mfu": None}, steps=10, checkpoint=None)
    assert line == "step  5/10  loss nan  lr ?  ? tok/s  mfu unknown  eta ?  saved none"


@pytest.mark.parametrize(
    ("seconds", "eta"),
    [(0.01, "8s"), (0.1, "1m20s"), (9, "2h00m"), (500, "4d15h"), (float("inf"), "?")],
)
def test_the_time_left_follows_from_the_step_time(seconds: float, eta: str) -> None:
    assert f"  eta {eta}  " in format_line(FIGURES | {"step_seconds": seconds}, steps=1000, checkpoint=None)


def test_the_longest_line_fits_the_screen() -> None:
    huge = {
        "step": 99_990_000,
        "loss": -1.23456e30,
        "validation_loss": 9.87654e30,
        "learning_rate": 1.23e-100,
        "tokens_per_second": 9.9e14,
        "mfu": 1.0,
        "step_seconds": 86400.0,
    }
    line = format_line(huge, steps=99_999_999, checkpoint=99_999_999)
    assert len(line) <= 120 and line.endswith("saved 99999999") and "val 9.88e+30" in line


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA B200", 2250e12),
        ("AMD Instinct MI300X", 1307.4e12),
        ("cpu", None),
        ("AMD EPYC 9654", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("Tesla V100-SXM2-16GB", None),
        ("", None),
    ],
)
def test_peaks_are_those_of_the_data_sheets_and_never_guessed(device: str, peak: float | None) -> None:
    assert peak_flops(device) == peak


def test_mfu_by_hand() -> None:
    # 6 · 175e9 FLOPs a token, 2000 tokens/s: 2.1e15 of 16 · 312e12
    assert mfu(1.05e12, 2000.0, "NVIDIA A100-SXM4-80GB", 16) == pytest.approx(2.1e15 / 4.992e15)
    assert mfu(1.05e12, 2000.0, "cpu", 16) is None


class Hand:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_the_clock_splits_steps_by_phase() -> None:
    hand = Hand()
    clock = StepClock(useful_seconds=1000.0, now=hand)
    for _ in range(2):
        with clock.phase("data"):
            hand.time += 1
        with clock.phase("forward_backward"):
            hand.time += 4
        with clock.phase("optimizer"):
            hand.time += 2
            with clock.phase("checkpoint"):
                hand.time += 0.5
        hand.time += 0.25  # the loop itself
        clock.step_done()
    with clock.phase("validation"):
        hand.time += 10
    assert clock.take() == {
        "step_seconds": 7.75,
        "data_seconds": 1.0,
        "forward_backward_seconds": 4.0,
        "optimizer_seconds": 2.0,
        "checkpoint_seconds": 0.5,
        "validation_seconds": 10.0,
    }
    assert clock.useful_seconds == 1012.0
    assert clock.take() == {}
    hand.time += 3
    clock.step_done()
    assert clock.take()["step_seconds"] == 3.0


def test_a_phase_that_fails_is_closed_and_an_unknown_one_refused() -> None:
    hand = Hand()
    clock = StepClock(now=hand)

    def fail() -> None:
        with clock.phase("data"):
            hand.time += 1
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - its own
        fail()
    hand.time += 1
    clock.step_done()
    assert clock.take()["data_seconds"] == 1.0
    with pytest.raises(KeyError, match="no phase 'forward'"), clock.phase("forward"):
        pass


def test_the_clock_says_what_all_of_a_process_life_went_into() -> None:
    hand = Hand()
    clock = StepClock(useful_seconds=1000.0, now=hand, begun=90.0)
    hand.time += 5  # loading
    for _ in range(2):
        for name, seconds in (("data", 1.0), ("forward_backward", 4.0), ("check", 0.5), ("optimizer", 2.0)):
            with clock.phase(name):
                hand.time += seconds
        clock.step_done()
        hand.time += 0.25
        clock.take()
    assert clock.spent() == {
        "start": 15.0, "step": 12.0, "data": 2.0, "checkpoint": 0.0, "validation": 0.0, "check": 1.0, "other": 0.5
    }  # fmt: skip
