"""Learning rates against tables computed by hand."""

from __future__ import annotations

import pytest

from data_pipeline.batching import BatchConfig, BatchSchedule, Duration, RampConfig
from training.errors import RecipeError
from training.schedule import Schedule


def schedule(
    kind: str = "cosine",
    warmup: int | str = 0,
    decay: int | str | None = None,
    total: int | str = 10,
    lr: float = 1.0,
    min_lr_ratio: float = 0.1,
    tokens_per_step: int = 100,
) -> Schedule:
    return Schedule(
        kind,  # type: ignore[arg-type]
        lr,
        warmup=Duration.parse(warmup),
        decay=None if decay is None else Duration.parse(decay),
        total=Duration.parse(total),
        min_lr_ratio=min_lr_ratio,
        tokens_at=lambda steps: steps * tokens_per_step,
    )


def rates(schedule: Schedule, steps: int, tokens_per_step: int = 100) -> list[float]:
    return [schedule.learning_rate(step, (step + 1) * tokens_per_step) for step in range(steps)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # Warm-up over 4: step 0 gets a quarter, step 3 the peak. Decay over the 6 others: 0.9/6 = 0.15 down a step.
        ({"kind": "linear", "warmup": 4}, [0.25, 0.5, 0.75, 1.0, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1, 0.1, 0.1]),
        # (1 + cos(pi k/4))/2 = 0.853553, 0.5, 0.146447, 0 for k = 1..4; min 0.2, span 0.8.
        (
            {"kind": "cosine", "warmup": 2, "decay": 6, "min_lr_ratio": 0.2},
            [0.5, 1.0, 0.8828427, 0.6, 0.3171573, 0.2, 0.2],
        ),
        ({"kind": "constant", "warmup": 3}, [1 / 3, 2 / 3, 1.0, 1.0, 1.0]),
        ({"kind": "constant"}, [1.0, 1.0]),
        ({"kind": "constant", "warmup": "250 tokens"}, [0.4, 0.8, 1.0, 1.0]),
        ({"kind": "linear", "total": 4, "min_lr_ratio": 0.0}, [0.75, 0.5, 0.25, 0.0, 0.0]),
        ({"kind": "linear", "warmup": 4, "total": 4}, [0.25, 0.5, 0.75, 1.0, 0.1]),
        ({"kind": "cosine", "warmup": 1, "min_lr_ratio": 1.0, "total": 3}, [1.0, 1.0, 1.0]),
    ],
)
def test_rates_by_hand(arguments: dict, expected: list[float]) -> None:
    assert rates(schedule(**arguments), len(expected)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("warmup", "decay", "total"),
    [
        (4, 10, 99),
        (4, None, 10),
        ("400 tokens", "1k tokens", 99),
        ("400 tokens", 10, 99),
        (4, "1000 tokens", 99),
        ("400 tokens", None, 10),
        (4, None, "1k tokens"),
    ],
)
def test_steps_and_tokens_are_two_ways_to_say_the_same(
    warmup: int | str, decay: int | str | None, total: int | str
) -> None:
    assert rates(schedule("linear", warmup, decay, total), 12) == pytest.approx(
        [0.25, 0.5, 0.75, 1.0, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1, 0.1, 0.1], rel=1e-12
    )


@pytest.mark.parametrize(
    ("tokens", "rate"),
    [
        (500_000, 8.0e-7),  # the first batch of the 125M model: 0.5 M of 375 M tokens of 6e-4
        (187_500_000, 3.0e-4),
        (375_000_000, 6.0e-4),
        (65_281_250_000, 5.2091883e-4),  # a quarter of the way: 6e-5 + 0.8535534 · 5.4e-4
        (130_187_500_000, 3.3e-4),  # half of the way: the mean of 6e-4 and 6e-5
        (260_000_000_000, 6.0e-5),
        (
            300_000_000_000,
            6.0e-5,
        ),  # "after 260 billion tokens, training continues at 10% of the original learning rate"
    ],
)
def test_gpt3(tokens: int, rate: float) -> None:
    gpt3 = schedule("cosine", "375M tokens", "260B tokens", total="300B tokens", lr=6.0e-4)
    assert gpt3.learning_rate(tokens // 500_000 - 1, tokens) == pytest.approx(rate, rel=1e-7)


def test_a_token_schedule_follows_the_tokens_of_a_growing_batch() -> None:
    """Sizes 2, 4, 6 … by a ramp, 10 tokens a sample: the warm-up over 120 tokens sees 20, 40, 60, 100, 140 of them."""
    batches = BatchSchedule(BatchConfig(8, 1, RampConfig(start=2, increment=2, over="180 tokens")), sequence_length=10)
    warmed = Schedule(
        "constant",
        1.0,
        warmup=Duration.parse("120 tokens"),
        decay=None,
        total=Duration.parse(10),
        min_lr_ratio=0.0,
        tokens_at=lambda steps: batches.start(steps) * 10,
    )
    found = [warmed.learning_rate(step, batches.start(step + 1) * 10) for step in range(5)]
    assert found == pytest.approx([20 / 120, 40 / 120, 60 / 120, 100 / 120, 1.0])


def test_under_a_ramp_a_warmup_in_steps_meets_a_decay_in_tokens_where_the_batches_are() -> None:
    batches = BatchSchedule(BatchConfig(8, 1, RampConfig(start=2, increment=2, over="180 tokens")), sequence_length=10)
    mixed = Schedule(
        "linear",
        1.0,
        warmup=Duration.parse(4),  # its 4 batches hold 2 + 2 + 2 + 4 = 10 samples of 10 tokens
        decay=Duration.parse("300 tokens"),
        total=Duration.parse(10),
        min_lr_ratio=0.0,
        tokens_at=lambda steps: batches.start(steps) * 10,
    )
    assert mixed.learning_rate(3, 100) == 1.0
    assert mixed.learning_rate(7, 200) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"warmup": 11}, r"optimizer.warmup \(11\) is longer than the run \(10\)"),
        ({"warmup": 7, "decay": "600 tokens"}, r"optimizer.warmup \(7\) is longer than optimizer.decay \(600 tokens\)"),
        ({"min_lr_ratio": 1.5}, "min_lr_ratio is 1.5"),
        ({"kind": "cosin"}, "one of cosine, linear, constant"),
    ],
)
def test_a_schedule_that_means_nothing_is_refused(arguments: dict, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        schedule(**arguments)
