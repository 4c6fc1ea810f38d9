"""Durations, batch sizes and the ramp."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.batching import BatchConfig, BatchSchedule, Duration, RampConfig
from data_pipeline.errors import BadConfig


@pytest.mark.parametrize(
    ("text", "steps", "tokens"),
    [
        (20, 20, None),
        ("20", 20, None),
        ("300 steps", 300, None),
        ("2k steps", 2000, None),
        ("375M tokens", None, 375_000_000),
        ("3.2B tokens", None, 3_200_000_000),
        ("32k tokens", None, 32_000),
        ("1 token", None, 1),
        ("0.3T tokens", None, 300_000_000_000),
    ],
)
def test_durations_are_read_as_they_are_written(text: str | int, steps: int | None, tokens: int | None) -> None:
    assert Duration.parse(text) == Duration(steps=steps, tokens=tokens)


@given(st.booleans(), st.integers(0, 10**15))
def test_a_duration_survives_its_own_spelling(in_steps: bool, value: int) -> None:
    duration = Duration(steps=value) if in_steps else Duration(tokens=value)
    assert Duration.parse(str(duration)) == duration


@pytest.mark.parametrize("text", ["", "soon", "4B", "1.5 steps", "0.0001k tokens", "-3", "4 B B tokens", "3 epochs"])
def test_what_is_no_duration_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(BadConfig) as error:
        Duration.parse(text)
    assert "\n" not in str(error.value) and error.value.exit_code == 2


def naive_batches(config: BatchConfig, sequence_length: int, steps: int) -> list[tuple[int, int]]:
    """(start, size) of each batch by the loop that Megatron-LM runs: consumed samples decide the next size."""
    sample, out = 0, []
    for _ in range(steps):
        size = config.global_batch_size
        if config.ramp:
            stages = (config.global_batch_size - config.ramp.start) // config.ramp.increment
            tokens = Duration.parse(config.ramp.over).tokens
            assert tokens is not None
            for stage in range(stages):
                if sample * sequence_length * stages < tokens * (stage + 1):
                    size = config.ramp.start + stage * config.ramp.increment
                    break
        out.append((sample, size))
        sample += size
    return out


@given(
    start=st.integers(1, 20),
    increment=st.integers(1, 20),
    stages=st.integers(0, 8),
    tokens=st.integers(0, 5000),
    sequence_length=st.integers(1, 40),
    asked=st.integers(0, 20_000),
)
def test_closed_form_agrees_with_the_loop(
    start: int, increment: int, stages: int, tokens: int, sequence_length: int, asked: int
) -> None:
    config = BatchConfig(start + stages * increment, 1, RampConfig(start, increment, f"{tokens} tokens"))
    schedule = BatchSchedule(config, sequence_length)
    naive = naive_batches(config, sequence_length, 150)
    assert [(schedule.start(step), schedule.size(step)) for step in range(150)] == naive
    assert set(schedule.sizes()) >= {size for _, size in naive}
    step = schedule.step_of_tokens(asked)
    assert schedule.start(step) * sequence_length >= asked
    assert step == 0 or schedule.start(step - 1) * sequence_length < asked


def test_gpt3_ramp_from_32k_to_3_2m_tokens_over_4b() -> None:
    """GPT-3 175B: 2,048-token sequences, 16 → 1,568 samples (32k → 3.2M tokens), here in steps of 16 over 4B tokens.

    By hand: 97 sizes below the full one share 4e9 tokens, 41,237,113.4 tokens or 20,135.3 samples each. Size 16 holds
    until sample 20,136: ceil(20136 / 16) = 1,259 steps, to sample 20,144. Size 32 until sample ceil(40270.6) = 40,271:
    ceil((40271 - 20144) / 32) = 629 steps, to sample 40,272.
    """
    schedule = BatchSchedule(BatchConfig(1568, 1, RampConfig(16, 16, "4B tokens")), 2048)
    assert (schedule.size(0), schedule.size(1258), schedule.size(1259)) == (16, 16, 32)
    assert schedule.start(1259) == 20_144
    assert (schedule.size(1259 + 628), schedule.size(1259 + 629)) == (32, 48)
    assert schedule.start(1259 + 629) == 40_272
    full = schedule.step_of_tokens(4_000_000_000)
    assert (schedule.size(full - 1), schedule.size(full)) == (1552, 1568)
    assert 0 <= schedule.start(full) * 2048 - 4_000_000_000 < 1552 * 2048
    assert schedule.start(10**12) - schedule.start(10**12 - 1) == 1568
    assert len(schedule.sizes()) == 98


@pytest.mark.parametrize(
    "ramp",
    [
        RampConfig(3, 4, "1k tokens"),
        RampConfig(20, 1, "1k tokens"),
        RampConfig(4, 4, "10 steps"),
        RampConfig(0, 4, "1k tokens"),
    ],
)
def test_a_ramp_that_misses_the_full_size_is_refused(ramp: RampConfig) -> None:
    with pytest.raises(BadConfig, match=r"batch\.ramp"):
        BatchSchedule(BatchConfig(16, 1, ramp), 128)
