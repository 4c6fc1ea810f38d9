"""A micro-batch's work by formula against the products that real models start, counted one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from modeling.clip.config import CLIPConfig
from modeling.clip.work import work as clip_work
from modeling.gpt.config import GPTConfig
from modeling.gpt.flops import attended_positions, flops_per_token, parameter_count
from modeling.gpt.work import work as gpt_work
from modeling.layout import Layout
from modeling.work import Attention
from tests.modeling import clip_worlds
from tests.modeling.worlds import GPT2_LIKE, LLAMA_LIKE, build, loss_and_gradients, sample, world_of_one


class Operations(TorchDispatchMode):
    """What torch's own FlopCounterMode counts, without its tracking of modules, which recomputation confuses."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.counted[func._overloadpacket.__name__] += count(*args, **(kwargs or {}), out_val=out)
        return out

    @property
    def attention(self) -> int:
        """Batched products are those of attention alone, where it runs as plain products."""
        return self.counted["bmm"]

    @property
    def others(self) -> int:
        return self.counted.total() - self.attention


@pytest.fixture(scope="module", autouse=True)
def _world() -> Iterator[None]:
    with world_of_one(), sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(
    "config",
    [GPT2_LIKE, replace(GPT2_LIKE, tie_embeddings=False), LLAMA_LIKE, replace(GPT2_LIKE, attention="alternating")],
    ids=["tied", "untied", "llama", "banded"],
)
def test_decoders_start_exactly_the_products_of_the_formula(config: GPTConfig, recompute: str) -> None:
    model = build(config, recompute=recompute)
    with Operations() as ran:
        loss_and_gradients(model, sample(config, 2))
    work = gpt_work(config, Layout(), 0, 2, recompute)
    assert ran.others == work.training + work.recomputed
    # A mask of 256 hides nothing of 16 positions, and masks are no reason for plain products to do less.
    attention = work.attention_training(causal=False) + work.attention_recomputed(causal=False)
    assert ran.attention == attention


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(
    "config",
    [
        clip_worlds.TINY,
        replace(clip_worlds.TINY, lock_image=True),
        replace(clip_worlds.TINY, patch_dropout=0.5),
        clip_worlds.RESNET,
    ],
    ids=["vit", "locked", "patches left out", "resnet"],
)
def test_towers_start_exactly_the_products_of_the_formula(config: CLIPConfig, recompute: str) -> None:
    model = clip_worlds.build(config, recompute=recompute)
    model.train()
    for parameter in model.vision.parameters():
        parameter.requires_grad_(parameter.requires_grad and not config.lock_image)
    with Operations() as ran:
        image, text, _, _ = model(*clip_worlds.pairs(config, 4))
        assert image is not None and text is not None
        (image.sum() + text.sum()).backward()
    work = clip_work(config, Layout(), 0, 4, recompute)
    assert ran.others == work.training + work.recomputed
    assert ran.attention == work.attention_training(causal=False) + work.attention_recomputed(causal=False)


@pytest.mark.parametrize("config", [GPT2_LIKE, replace(GPT2_LIKE, tie_embeddings=False), LLAMA_LIKE])
def test_six_n_counts_besides_the_products_what_multiplies_nothing(config: GPTConfig) -> None:
    work = gpt_work(config, Layout(), 0, 1, "none")
    h, layers = config.hidden_size, config.num_layers
    norms = (2 * layers + 1) * h * (2 if config.normalization == "layernorm" else 1)
    biases = layers * (3 * h + h + 4 * h + h) if config.biases else 0
    looked_up = config.vocabulary * h if not config.tie_embeddings else 0
    positions = config.sequence_length * h if config.positions == "learned" else 0
    padding = (config.multiplied_rows(1) - config.vocabulary) * h
    products = parameter_count(config) - norms - biases - looked_up - positions + padding
    assert work.training == 6 * products * config.sequence_length


@pytest.mark.parametrize(
    "config", [GPT2_LIKE, LLAMA_LIKE, replace(GPT2_LIKE, attention="alternating", attention_band=5)]
)
@pytest.mark.parametrize("causal", [False, True])
def test_attention_agrees_with_the_formula_of_a_token(config: GPTConfig, causal: bool) -> None:
    work = gpt_work(config, Layout(), 0, 1, "none")
    a_token = 12 * config.hidden_size * attended_positions(config, causal=causal)
    assert work.attention_training(causal=causal) == pytest.approx(a_token * config.sequence_length)
    whole = flops_per_token(config, causal=causal) - 6 * parameter_count(config)
    assert work.attention_training(causal=causal) == pytest.approx(whole * config.sequence_length)


@pytest.mark.parametrize("layout", [Layout(tensor=4, sequence=True), Layout(pipeline=4), Layout(tensor=2, pipeline=4)])
def test_all_ranks_together_do_the_work_of_one(layout: Layout) -> None:
    config = replace(GPT2_LIKE, num_layers=8, vocab_size=512)
    whole = gpt_work(config, Layout(), 0, 3, "selective")
    parts = [gpt_work(config, layout, stage, 3, "selective") for stage in range(layout.pipeline)]
    assert layout.tensor * sum(part.training for part in parts) == pytest.approx(whole.training)
    assert layout.tensor * sum(part.recomputed for part in parts) == pytest.approx(whole.recomputed)
    attention = sum(part.attention_training(causal=True) for part in parts)
    assert layout.tensor * attention == pytest.approx(whole.attention_training(causal=True))


@given(queries=st.integers(1, 40), tile=st.sampled_from([1, 4, 7]), causal=st.booleans())
def test_tiles_cover_the_pairs_that_are_needed_and_few_others(queries: int, tile: int, causal: bool) -> None:
    attention = Attention(1, queries, queries, 8, causal=causal)
    needed = attention.pairs(causal=True)
    touched = {
        (query // tile, key // tile) for query in range(queries) for key in range(query + 1 if causal else queries)
    }
    assert attention.tiles(tile) == len(touched) * tile * tile >= needed
    assert attention.pairs(causal=False) >= needed


@given(queries=st.integers(2, 40), band=st.integers(1, 50), documents=st.booleans())
def test_a_kernel_with_a_mask_computes_all_pairs(queries: int, band: int, documents: bool) -> None:
    plain = Attention(1, queries, queries, 8, causal=True)
    attention = replace(plain, band=band, documents=documents)
    # A band as wide as the sequence hides nothing: `modeling.attention` passes no mask then.
    assert attention.masked == (documents or band < queries)
    if attention.masked:
        assert attention.run == 4 * 8 * queries**2 == 4 * 8 * attention.tiles(1)
    else:
        assert attention.run == plain.run == plain.flops(causal=True) < plain.flops(causal=False)
    assert attention.flops(causal=True) <= plain.flops(causal=True)  # what the convention counts stays


def test_layers_with_masks_are_those_that_get_one() -> None:
    config = replace(GPT2_LIKE, attention="alternating", attention_band=5)
    work = gpt_work(config, Layout(), 0, 1, "full")
    masked = sum(one.count for one in work.attention if one.masked)
    assert 0 < masked == sum(band is not None for band in config.band_of_layer()) < config.num_layers
    dense = gpt_work(GPT2_LIKE, Layout(), 0, 1, "full")
    assert not any(one.masked or one.grouped for one in dense.attention)
    assert all(one.grouped for one in gpt_work(LLAMA_LIKE, Layout(), 0, 1, "full").attention)
    assert dense.attention_run == dense.attention_training(causal=True) + dense.attention_recomputed(causal=True)
    assert dense.by_document().attention_run == pytest.approx(
        dense.attention_training(causal=False) + dense.attention_recomputed(causal=False)
    )
