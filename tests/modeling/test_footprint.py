"""What a rank holds by formula is what its modules hold, and coordinates by formula are those of Megatron Core."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from modeling.execution import Execution
from modeling.groups import coordinates
from modeling.layout import Layout, Place
from modeling.megatron_bridge import on_meta_device
from modeling.registry import family
from tests.modeling.worlds import GPT2_LIKE, LLAMA_LIKE, fake_rank

GPTS: list[dict[str, Any]] = [
    {**vars(like), "num_layers": 8, "vocab_size": vocabulary, "tie_embeddings": tied}
    for like, vocabulary in ((GPT2_LIKE, 100), (LLAMA_LIKE, 300))
    for tied in (True, False)
]
VIT: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "vision_layers": 2, "vision_width": 32, "vision_heads": 4, "embed_dim": 24,
    "text_layers": 3, "text_width": 48, "text_heads": 4, "context_length": 9, "vocab_size": 70,
}  # fmt: skip
CLIPS: list[dict[str, Any]] = [
    VIT,
    {**VIT, "loss": "sigmoid", "lock_image": True},
    {**VIT, "lock_text": True},
    {**VIT, "vision": "resnet50", "image_size": 64, "vision_width": 8},
    {**VIT, "vision": "resnet50", "image_size": 64, "vision_width": 8, "lock_image": True},
]
LAYOUTS = [
    Layout(),
    Layout(tensor=2),
    Layout(tensor=2, sequence=True),
    Layout(pipeline=4),
    Layout(tensor=2, pipeline=2, virtual_pipeline=2),
]


def held(name: str, config: Any, layout: Layout, rank: int) -> tuple[Counter[tuple[int, bool, bool]], Place]:
    """(elements, decayed, trainable) of every parameter of a rank's real modules, and where the rank stands."""
    found: Counter[tuple[int, bool, bool]] = Counter()
    implementation = family(name).implementation
    with fake_rank(layout, rank, layout.model_parallel), on_meta_device():
        for chunk in implementation.build(config, Execution(layout=layout)):
            shards = implementation.describe(chunk)
            for key, parameter in chunk.named_parameters():
                found[parameter.numel(), shards[key].decay, parameter.requires_grad] += 1
        here = coordinates()
    return found, Place(here.tensor, here.pipeline, here.data)


def assert_same(name: str, config: Any, layout: Layout) -> None:
    for rank in range(layout.model_parallel):
        found, place = held(name, config, layout, rank)
        assert layout.place(rank, layout.model_parallel) == place
        parameters = family(name).footprint(config, layout, place.pipeline, "none").parameters
        assert Counter((p.numel, p.decay, p.trainable) for p in parameters) == found
        assert len({p.name for p in parameters}) == len(parameters)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_decoder_by_formula_is_what_each_rank_builds(layout: Layout) -> None:
    for shape in GPTS:
        assert_same("gpt", family("gpt").config(**shape), layout)


@pytest.mark.parametrize("shape", CLIPS, ids=["vit", "lit", "text locked", "resnet", "resnet locked"])
def test_clip_by_formula_is_what_each_rank_builds(shape: dict[str, Any]) -> None:
    layouts = [Layout()] if shape.get("vision") else [layout for layout in LAYOUTS if layout.pipeline == 1]
    for layout in layouts:
        assert_same("clip", family("clip").config(**shape), layout)


def test_coordinates_of_a_thousand_ranks_are_megatrons() -> None:
    layout = Layout(tensor=8, pipeline=16)
    for rank in [0, 7, 8, 63, 64, 1023, *random.Random(1).sample(range(1024), 4)]:
        with fake_rank(layout, rank, 1024):
            here = coordinates()
        assert layout.place(rank, 1024) == Place(here.tensor, here.pipeline, here.data)


def test_schedules_keep_as_many_micro_batches_as_they_warm_up_with() -> None:
    assert [Layout(pipeline=4).in_flight(stage, 8) for stage in range(4)] == [4, 3, 2, 1]
    assert Layout(pipeline=4).in_flight(0, 2) == 2
    assert [Layout(pipeline=2, virtual_pipeline=2).in_flight(stage, 4) for stage in range(2)] == [2.5, 1.5]
