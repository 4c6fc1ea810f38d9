"""Impossible shapes and layouts are refused with one sentence that names the keys and what would fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling.errors import ModelError
from modeling.execution import Execution
from modeling.gpt import network
from modeling.gpt.config import GPTConfig
from modeling.layout import Layout
from modeling.megatron_bridge import on_meta_device
from modeling.registry import family, family_of_preset
from tests.modeling.worlds import GPT2_LIKE, LLAMA_LIKE, fake_rank

SIXTEEN = replace(GPT2_LIKE, hidden_size=64, num_attention_heads=16, num_layers=12)


def shape(**changes: Any) -> Callable[[], None]:
    return lambda: replace(GPT2_LIKE, **changes).check()


def layout(config: GPTConfig = SIXTEEN, **sizes: Any) -> Callable[[], None]:
    return lambda: config.check_layout(Layout(**sizes))


REFUSED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "no layers": (shape(num_layers=0), ["model.num_layers is 0", "at least 1"]),
    "no groups": (shape(num_query_groups=0), ["model.num_query_groups is 0", "at least 1"]),
    "negative mlp": (shape(ffn_hidden_size=-4), ["model.ffn_hidden_size is -4", "at least 1"]),
    "empty vocabulary": (shape(vocab_size=0), ["model.vocab_size is 0", "at least 1"]),
    "heads": (
        shape(hidden_size=100, num_attention_heads=12),
        ["hidden_size 100", "num_attention_heads 12", "10 or 20 heads"],
    ),
    "groups": (shape(num_query_groups=3), ["num_attention_heads 4", "num_query_groups 3", "2 or 4 groups"]),
    "rotary": (shape(positions="rotary", hidden_size=12), ["rotary", "3 wide", "even"]),
    "dropout": (shape(dropout=1.0), ["model.dropout is 1.0", "[0, 1)"]),
    "negative dropout": (shape(dropout=-0.1), ["model.dropout is -0.1", "[0, 1)"]),
    "vocabulary unknown": (lambda: replace(GPT2_LIKE, vocab_size=None).vocabulary, ["model.vocab_size", "data.mix"]),
    "tensor over heads": (layout(tensor=3), ["num_attention_heads 16", "parallel.tensor 3", "2 or 4 would fit"]),
    "tensor over groups": (layout(LLAMA_LIKE, tensor=4), ["num_query_groups 2", "parallel.tensor 4", "2 would fit"]),
    "tensor over mlp": (
        layout(replace(GPT2_LIKE, num_attention_heads=8, ffn_hidden_size=36), tensor=8),
        ["ffn_hidden_size 36", "parallel.tensor 8", "6 or 9 would fit"],
    ),
    "tensor over vocabulary": (
        layout(replace(GPT2_LIKE, num_attention_heads=3, ffn_hidden_size=9), tensor=3),
        ["vocabulary padded to 128", "parallel.tensor 3", "2 or 4 would fit"],
    ),
    "sequence": (
        layout(replace(SIXTEEN, sequence_length=15), tensor=2, sequence=True),
        ["parallel.sequence", "model.sequence_length 15", "parallel.tensor 2", "multiple"],
    ),
    "stages": (layout(pipeline=5), ["model.num_layers 12", "parallel.pipeline 5", "4 or 6 stages"]),
    "virtual stages": (
        layout(pipeline=2, virtual_pipeline=4),
        ["model.num_layers 12", "parallel.pipeline 2", "parallel.virtual_pipeline 4 = 8", "6 or 12 stages"],
    ),
    "no tensor": (lambda: Layout(tensor=0).check(), ["parallel.tensor is 0", "at least 1"]),
    "virtual without pipeline": (
        lambda: Layout(virtual_pipeline=2).check(),
        ["parallel.virtual_pipeline 2", "parallel.pipeline is 1", "2 or more"],
    ),
    "sequence without tensor": (
        lambda: Layout(sequence=True).check(),
        ["parallel.sequence", "parallel.tensor is 1", "2 or more"],
    ),
    "world": (
        lambda: Layout(tensor=2, pipeline=2).data_parallel(6),
        ["parallel.tensor 2", "parallel.pipeline 2", "6 ranks", "multiple of 4"],
    ),
    "compile with dropout": (
        lambda: Execution(compile=True).check(0.1),
        ["training.compile", "model.dropout 0.1", "model.dropout to 0"],
    ),
    "compile with selective": (
        lambda: Execution(compile=True, recompute="selective").check(0.0),
        ["training.compile", "training.recompute selective", "full or none"],
    ),
    "family": (lambda: family("gtp"), ["model.family 'gtp'", "gpt"]),
    "preset": (lambda: family_of_preset("gpt3-1b"), ["model.preset 'gpt3-1b'", "gpt3-1.3b"]),
}


@pytest.mark.parametrize(("action", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_the_mistake_is_named_with_its_keys_and_what_would_fit(action: Callable[[], Any], said: list[str]) -> None:
    with pytest.raises(ModelError) as error:
        action()
    message = str(error.value)
    assert error.value.exit_code == 2 and "\n" not in message
    missing = [words for words in said if words not in message]
    assert not missing, f"{message!r} does not say {missing}"


@st.composite
def shapes_and_layouts(draw: st.DrawFn) -> tuple[GPTConfig, Layout]:
    heads = draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    config = replace(
        draw(st.sampled_from([GPT2_LIKE, LLAMA_LIKE])),
        num_layers=draw(st.sampled_from([1, 2, 4, 6, 8])),
        hidden_size=heads * draw(st.integers(1, 8)),
        num_attention_heads=heads,
        num_query_groups=draw(st.sampled_from([None, None, 1, 2, 4])),
        ffn_hidden_size=draw(st.sampled_from([1, 6, 8, 12, 24, 40])),
        sequence_length=draw(st.sampled_from([1, 4, 7, 12])),
        vocab_size=draw(st.integers(1, 300)),
        tie_embeddings=draw(st.booleans()),
    )
    layout = Layout(
        tensor=draw(st.integers(1, 4)),
        pipeline=draw(st.sampled_from([1, 1, 2, 3, 4])),
        virtual_pipeline=draw(st.sampled_from([1, 1, 2])),
        sequence=draw(st.sampled_from([False, False, True])),
    )
    return config, layout


def test_what_passes_the_checks_can_be_built() -> None:
    possible = impossible = 0

    @given(case=shapes_and_layouts(), data=st.data())
    @settings(deadline=None, max_examples=200, derandomize=True)
    def build_or_refuse(case: tuple[GPTConfig, Layout], data: st.DataObject) -> None:
        nonlocal possible, impossible
        config, chosen = case
        try:
            chosen.check()
            config.check()
            config.check_layout(chosen)
        except ModelError:
            impossible += 1
            return
        possible += 1
        rank = data.draw(st.integers(0, chosen.model_parallel - 1))
        with fake_rank(chosen, rank, chosen.model_parallel), on_meta_device():
            for chunk in network.build(config, Execution(layout=chosen)):
                for name, shard in network.describe(chunk).items():
                    assert shard.numel <= shard.local_numel == chunk.get_parameter(name).numel()
                    ends = [low + size for low, size in zip(shard.offset, shard.shape, strict=True)]
                    assert all(end <= size for end, size in zip(ends, shard.global_shape, strict=True))

    build_or_refuse()
    assert possible >= 20 and impossible >= 20
