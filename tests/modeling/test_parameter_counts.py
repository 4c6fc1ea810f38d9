"""Every shipped model's size: the shards of all ranks together, the formula, and the paper's table D.1."""

from __future__ import annotations

import math
import resource
from collections import Counter

import pytest

from modeling.execution import Execution
from modeling.gpt import network
from modeling.gpt.config import GPTConfig
from modeling.gpt.flops import parameter_count
from modeling.gpt.presets import PRESETS
from modeling.layout import Layout
from modeling.megatron_bridge import on_meta_device
from tests.modeling.worlds import GPT2_LIKE, LLAMA_LIKE, fake_rank

# Brown et al. 2020, appendix D, table D.1, column "Params (M)".
TABLE_D1 = {
    "gpt3-125m": 125e6,
    "gpt3-350m": 356e6,
    "gpt3-760m": 760e6,
    "gpt3-1.3b": 1_320e6,
    "gpt3-2.7b": 2_650e6,
    "gpt3-6.7b": 6_660e6,
    "gpt3-13b": 12_850e6,
    "gpt3-175b": 174_600e6,
}


def sizes_on_rank(config: GPTConfig, layout: Layout, rank: int, shapes: dict[str, tuple[int, ...]]) -> Counter[str]:
    """Elements by global name that this rank owns: replicas and tied copies belong to their first holder."""
    sizes: Counter[str] = Counter()
    with fake_rank(layout, rank, layout.model_parallel), on_meta_device():
        for chunk in network.build(config, Execution(layout=layout)):
            assert all(parameter.is_meta for parameter in chunk.parameters())
            for shard in network.describe(chunk).values():
                assert shapes.setdefault(shard.name, shard.global_shape) == shard.global_shape
                if shard.replica == 0 and not shard.tied_copy:
                    sizes[shard.name] += shard.numel
    return sizes


def assert_shards_make_up_the_model(config: GPTConfig, sizes: Counter[str], shapes: dict[str, tuple[int, ...]]) -> None:
    assert sizes == {name: math.prod(shape) for name, shape in shapes.items()}
    assert sizes.total() == parameter_count(config)


@pytest.mark.parametrize("preset", sorted(TABLE_D1))
def test_formula_agrees_with_the_papers_table_within_half_a_percent(preset: str) -> None:
    assert parameter_count(GPTConfig(**PRESETS[preset])) == pytest.approx(TABLE_D1[preset], rel=0.005)


def test_every_preset_is_checked_against_a_known_count() -> None:
    assert set(PRESETS) - set(TABLE_D1) == {"llama-160m"}
    # 2 x 32000 x 768 + 12 x (768 x (768 + 512) + 768^2 + 3 x 768 x 2048 + 2 x 768) + 768
    assert parameter_count(GPTConfig(**PRESETS["llama-160m"])) == 124_668_672


@pytest.mark.parametrize(
    "layout", [Layout(), Layout(tensor=4, sequence=True), Layout(pipeline=4), Layout(tensor=2, pipeline=2)], ids=str
)
@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"gpt3-175b"}))
def test_all_ranks_together_hold_each_shipped_model_once(preset: str, layout: Layout) -> None:
    config = GPTConfig(**PRESETS[preset])
    sizes: Counter[str] = Counter()
    shapes: dict[str, tuple[int, ...]] = {}
    for rank in range(layout.model_parallel):
        sizes += sizes_on_rank(config, layout, rank, shapes)
    assert_shards_make_up_the_model(config, sizes, shapes)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("like", [GPT2_LIKE, LLAMA_LIKE], ids=["gpt2", "llama"])
def test_interleaved_stages_and_odd_vocabularies_hold_the_model_once(like: GPTConfig, tied: bool) -> None:
    layout = Layout(tensor=2, pipeline=2, virtual_pipeline=2)
    for vocab_size in (127, 128, 129, 30):  # with 30, the second rank holds nothing but padding
        config = GPTConfig(**{**vars(like), "num_layers": 8, "tie_embeddings": tied, "vocab_size": vocab_size})
        sizes: Counter[str] = Counter()
        shapes: dict[str, tuple[int, ...]] = {}
        for rank in range(layout.model_parallel):
            sizes += sizes_on_rank(config, layout, rank, shapes)
        assert_shards_make_up_the_model(config, sizes, shapes)


def test_175b_on_128_ranks_is_whole_and_takes_no_memory() -> None:
    config = GPTConfig(**PRESETS["gpt3-175b"])
    layout = Layout(tensor=8, pipeline=16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sizes: Counter[str] = Counter()
    shapes: dict[str, tuple[int, ...]] = {}
    for stage in range(16):
        # Ranks 1 to 6 of a tensor-parallel group differ in where their boxes begin alone: one stands for them.
        for tensor_rank, times in ((0, 1), (1, 6), (7, 1)):
            for name, size in sizes_on_rank(config, layout, 8 * stage + tensor_rank, shapes).items():
                sizes[name] += times * size
    assert_shards_make_up_the_model(config, sizes, shapes)
    # A single rank's weights would be 5.5 GB in fp32.
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 200e6
