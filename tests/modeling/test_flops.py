"""FLOPs a token, against numbers worked out by hand and against attended positions counted one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modeling.gpt.config import GPTConfig
from modeling.gpt.flops import attended_positions, flops_per_token, parameter_count
from tests.modeling.worlds import LLAMA_LIKE

# Two layers, h = 4, s = 6, 10 tokens. A layer: QKV 3*16 + 12, projection 16 + 4, MLP 2*64 + 16 + 4, norms 2*8 = 244.
# Model: 2 * 244 + final norm 8 + embeddings 40 + positions 24 = 560.
SMALL = GPTConfig(
    num_layers=2, hidden_size=4, num_attention_heads=2, sequence_length=6, vocab_size=10, attention_band=3
)


def test_parameters_by_hand() -> None:
    assert parameter_count(SMALL) == 560
    assert parameter_count(replace(SMALL, tie_embeddings=False)) == 600
    assert parameter_count(replace(SMALL, biases=False)) == 560 - 2 * (12 + 4 + 16 + 4)
    # Llama-like, h = 32, f = 48, 2 of 4 key-value heads, untied: 2 (32*64 + 32*32 + 3*32*48 + 64) + 32 + 2*3200.
    assert parameter_count(LLAMA_LIKE) == 2 * (2048 + 1024 + 4608 + 64) + 32 + 6400


@pytest.mark.parametrize(
    ("attention", "causal", "attended"),
    [
        ("dense", False, 2 * 6),  # each of two layers: the whole sequence
        ("dense", True, 2 * 21 / 6),  # 1 + 2 + ... + 6 = 21 over six positions
        ("alternating", False, 6 + 3),  # the second layer sees three
        ("alternating", True, 21 / 6 + 15 / 6),  # 1 + 2 + 3 + 3 + 3 + 3 = 15
    ],
)
def test_flops_by_hand(attention: str, causal: bool, attended: float) -> None:
    config = replace(SMALL, attention=attention)
    assert attended_positions(config, causal=causal) == pytest.approx(attended)
    assert flops_per_token(config, causal=causal) == pytest.approx(6 * 560 + 12 * 4 * attended)


@pytest.mark.parametrize("attention", ["dense", "alternating"])
@pytest.mark.parametrize("band", [1, 5, 17, 40])
def test_attended_positions_are_those_counted_one_by_one(attention: str, band: int) -> None:
    config = replace(SMALL, num_layers=4, sequence_length=17, attention=attention, attention_band=band)
    pairs = sum(
        1
        for width in config.band_of_layer()
        for i in range(17)
        for j in range(17)
        if j <= i and (width is None or j > i - width)
    )
    assert attended_positions(config, causal=True) == pytest.approx(pairs / 17)


def test_gpt3_175b_training_cost_is_the_papers() -> None:
    # Brown et al. 2020, table D.1: 3.14e23 FLOPs for 300 B tokens, counted as 6 N (no attention).
    config = GPTConfig(num_layers=96, hidden_size=12288, num_attention_heads=96, sequence_length=2048, vocab_size=50257)
    attention = 12 * config.hidden_size * attended_positions(config, causal=False)
    assert (flops_per_token(config) - attention) * 300e9 == pytest.approx(3.14e23, rel=0.005)
