"""Initial values: element i of a parameter is a function of (seed, name, i), however the parameter is cut."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling.gpt import network
from modeling.gpt.config import GPTConfig
from modeling.initialization import fill_normal, key_of, random_bits, standard_normal
from modeling.sharding import Shard
from tests.modeling.worlds import GPT2_LIKE, LLAMA_LIKE, build

CPU = torch.device("cpu")


def splitmix64(key: int, count: int) -> list[int]:
    """SplitMix64 as published (Steele, Lea and Flood 2014, figure 17; Vigna's splitmix64.c), in Python's integers."""
    mask = (1 << 64) - 1
    state, outputs = key, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        outputs.append(z ^ (z >> 31))
    return outputs


def test_published_splitmix64_outputs_of_seed_1234567() -> None:
    # Known answers that accompany the reference implementation (Rosetta Code, "Pseudo-random numbers/Splitmix64").
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert splitmix64(1234567, 5) == known
    assert [x % 2**64 for x in random_bits(1234567, torch.arange(5)).tolist()] == known


@given(key=st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=50)
def test_random_bits_are_splitmix64_for_every_key(key: int) -> None:
    assert [x % 2**64 for x in random_bits(key, torch.arange(20)).tolist()] == splitmix64(key, 20)


def test_normals_follow_box_and_muller_on_the_two_halves() -> None:
    key = key_of(1, "x")
    for bits, value in zip(splitmix64(key, 50), standard_normal(key, torch.arange(50)).tolist(), strict=True):
        radius = math.sqrt(-2 * math.log(((bits >> 32) + 0.5) / 2**32))
        assert value == pytest.approx(radius * math.cos(2 * math.pi * (bits % 2**32) / 2**32), rel=1e-6, abs=1e-7)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[tuple[int, ...], list[list[int]], int]:
    """A global shape, for each axis the borders of a grid of boxes, and into how many flat ranges a box is cut."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    borders = [sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=2))}) for size in shape]
    return shape, borders, draw(st.integers(1, 4))


@given(cut=cuts(), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=100)
def test_any_cut_into_boxes_and_flat_ranges_gives_the_same_elements(
    cut: tuple[tuple[int, ...], list[list[int]], int], seed: int
) -> None:
    shape, borders, ranges = cut
    whole = torch.empty(math.prod(shape))
    fill_normal(whole, seed=seed, name="w", std=0.5, global_shape=shape, offset=(0,) * len(shape), shape=shape)
    assembled = torch.full(shape, torch.nan)
    grid = [list(pairwise(axis)) for axis in borders]
    for number in range(math.prod(len(axis) for axis in grid)):
        spans = []
        for axis in grid:
            number, i = divmod(number, len(axis))
            spans.append(axis[i])
        box = tuple(high - low for low, high in spans)
        values = torch.empty(math.prod(box))
        stops = [math.prod(box) * (i + 1) // ranges for i in range(ranges)]
        for start, stop in pairwise([0, *stops]):
            fill_normal(
                values[start:stop],
                seed=seed,
                name="w",
                std=0.5,
                global_shape=shape,
                offset=tuple(low for low, _ in spans),
                shape=box,
                start=start,
            )
        assembled[tuple(slice(low, high) for low, high in spans)] = values.view(box)
    assert torch.equal(assembled.flatten(), whole)


def test_large_parameters_are_the_same_across_the_internal_chunks() -> None:
    shape = (1100, 1000)  # more than the 2^20 elements that are made at a time
    whole = torch.empty(math.prod(shape))
    fill_normal(whole, seed=3, name="w", std=1.0, global_shape=shape, offset=(0, 0), shape=shape)
    part = torch.empty(1000)
    fill_normal(part, seed=3, name="w", std=1.0, global_shape=shape, offset=(0, 0), shape=shape, start=2**20 - 500)
    assert torch.equal(part, whole[2**20 - 500 : 2**20 + 500])


def test_values_are_standard_normal_and_independent() -> None:
    n = 1_000_000
    x = standard_normal(key_of(1234, "decoder.layers.0.mlp.linear_fc1.weight"), torch.arange(n)).double()
    # Each statistic of n draws has a known standard error; five of them is a chance of 6e-7.
    assert abs(x.mean()) < 5 / math.sqrt(n)
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((x**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((x**4).mean() - 3) < 5 * math.sqrt(96 / n)
    # Kolmogorov's statistic: sqrt(n) D exceeds 2.6 with probability 2 exp(-2 * 2.6^2) = 2.7e-6.
    cumulative = 0.5 * (1 + torch.erf(x.sort().values / math.sqrt(2)))
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum(steps[1:] - cumulative, cumulative - steps[:-1]).max()
    assert distance * math.sqrt(n) < 2.6
    for lag in (1, 2, 128, 1024):
        correlation = (x[lag:] * x[:-lag]).mean()
        assert abs(correlation) < 5 / math.sqrt(n - lag), f"elements {lag} apart are correlated"


@pytest.mark.parametrize(
    ("other_seed", "other_name"),
    [(1235, "decoder.layers.0.mlp.linear_fc1.weight"), (1234, "decoder.layers.1.mlp.linear_fc1.weight")],
)
def test_other_seeds_and_other_names_give_independent_values(other_seed: int, other_name: str) -> None:
    n = 100_000
    key, other_key = key_of(1234, "decoder.layers.0.mlp.linear_fc1.weight"), key_of(other_seed, other_name)
    # SplitMix64's streams are one sequence entered at different places: two that overlapped would share outputs.
    assert not torch.isin(random_bits(key, torch.arange(n)), random_bits(other_key, torch.arange(n))).any()
    products = standard_normal(key, torch.arange(n)) * standard_normal(other_key, torch.arange(n))
    assert abs(products.mean()) < 5 / math.sqrt(n)


def test_padding_rows_are_zero_and_the_real_rows_do_not_know_of_them() -> None:
    common = {"name": "e", "global_shape": (5, 4), "offset": (0, 0), "initial": 0.02, "normal": True, "decay": True}
    padded = Shard(shape=(5, 4), local_numel=8 * 4, **common)
    exact = Shard(shape=(5, 4), local_numel=5 * 4, **common)
    values = padded.initial_values(1, 0, 32, CPU)
    assert torch.equal(values[:20], exact.initial_values(1, 0, 20, CPU))
    assert values[:20].abs().min() > 0
    assert torch.equal(values[20:], torch.zeros(12))
    assert torch.equal(padded.initial_values(1, 18, 23, CPU), values[18:23])
    assert torch.equal(padded.initial_values(1, 24, 30, CPU), torch.zeros(6))


@pytest.mark.usefixtures("single_process")
@pytest.mark.parametrize("config", [GPT2_LIKE, LLAMA_LIKE], ids=["gpt2", "llama"])
def test_each_kind_of_parameter_starts_by_gpt2s_scheme(config: GPTConfig) -> None:
    wide = GPTConfig(
        **{**vars(config), "hidden_size": 128, "ffn_hidden_size": None, "num_layers": 8, "vocab_size": 300}
    )
    model = build(wide, seed=11)
    for name, shard in network.describe(model).items():
        values = model.get_parameter(name).detach().flatten()
        assert torch.equal(values[shard.numel :], torch.zeros(len(values) - shard.numel))
        values = values[: shard.numel].double()
        if name.endswith("bias"):
            assert not values.any(), name
        elif "norm" in name:
            assert torch.equal(values, torch.ones_like(values)), name
        else:
            # Radford et al. 2019, section 2.3: projections into the residual stream scaled by 1 / sqrt(2 x layers).
            residual = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
            std = 0.02 / math.sqrt(2 * 8) if residual else 0.02
            n = len(values)
            assert abs(values.mean()) < 5 * std / math.sqrt(n), name
            assert abs(values.std() / std - 1) < 5 / math.sqrt(2 * n), name
