"""The whole evaluation of a toy model: figures, pictures, refusals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.training.evaluation_rank import COLOURS, CONTEXT, MICRO, Painted, Toy, Words, everything, suite
from training.errors import RecipeError
from training.evaluation.config import EvaluationConfig, ProbeTask, ZeroShotTask
from training.evaluation.encode import Team
from training.evaluation.suite import Suite


def test_a_model_that_knows_its_colours_is_always_right() -> None:
    found = suite(everything(), Team()).run(Toy())
    figures = found.figures
    assert figures["zero_shot/colours/top1"] == figures["zero_shot/colours/mean_per_class"] == 1.0
    assert figures["retrieval/held-out/image_to_text_r1"] == figures["retrieval/held-out/text_to_image_r1"] == 1.0
    assert (
        figures["retrieval/held-out/text_to_image_r10"] == figures["retrieval/held-out/image_to_text_mean_rank"] == 1.0
    )
    assert figures["probe/tests/accuracy"] == figures["neighbours/tests/accuracy"] == 1.0
    assert all(isinstance(value, float) for value in figures.values())
    assert [tag for tag, _ in found.pictures] == [
        "retrieval/held-out/text_to_image",
        "retrieval/held-out/image_to_text",
        "retrieval/held-out/similarity",
        "zero_shot/colours/confusion",
    ]
    for _, picture in found.pictures:
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3


def test_a_model_that_knows_nothing_of_texts_is_not_and_its_pictures_still_tell_colours_apart() -> None:
    figures = suite(everything(), Team()).run(Toy(random=True), draw=False).figures
    assert figures["zero_shot/colours/top1"] < 0.8 and figures["retrieval/held-out/image_to_text_r1"] < 0.8
    assert figures["neighbours/tests/accuracy"] == 1.0


def test_the_same_evaluation_twice_gives_the_same() -> None:
    one = suite(everything(), Team())
    first, second = one.run(Toy()), one.run(Toy())
    assert first.figures == second.figures
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(first.pictures, second.pictures, strict=True))


def test_only_what_is_asked_for_runs() -> None:
    only_features = suite(EvaluationConfig(retrieval=False), Team()).run(Toy())
    assert only_features.figures == {} and not only_features.pictures
    (encoded,) = only_features.encoded.values()
    assert len(encoded.images) == len(encoded.captions) and len(encoded.text_features) == len(encoded.texts)
    nothing = one_set(EvaluationConfig(), lambda location: Painted(20))
    assert not nothing and nothing.run(Toy()).encoded == {}
    found = suite(everything(retrieval=False, pictures=False, samples=12), Team()).run(Toy())
    assert not found.pictures and not any(name.startswith("retrieval") for name in found.figures)


def one_set(config: EvaluationConfig, open_pairs: Callable[[str], Painted], **validation: str) -> Suite:
    return Suite(config, validation, open_pairs, Words(), CONTEXT, team=Team(), micro_batch_size=MICRO)


def test_a_set_is_opened_and_encoded_once_however_often_it_is_used() -> None:
    opened: list[str] = []

    def open_pairs(location: str) -> Painted:
        opened.append(location)
        return Painted(20)

    config = EvaluationConfig(
        zero_shot=[ZeroShotTask("x", list(COLOURS), templates=["{}"])], probe=[ProbeTask("x", "x")], pictures=False
    )
    toy = Toy()
    one_set(config, open_pairs, held="x").run(toy)
    assert opened == ["x"]
    assert toy.calls == [("images", MICRO)] * 5 + [("texts", MICRO)] * 2  # captions, and prompts


@pytest.mark.parametrize(
    ("config", "pairs", "said"),
    [
        (EvaluationConfig(), Painted(9, colours=["red"]), 'all pairs of the held-out set held have the caption "red"'),
        (EvaluationConfig(), Painted(0), "x has no pairs to evaluate on"),
        (
            EvaluationConfig(zero_shot=[ZeroShotTask("x", ["red", "grün"])]),
            Painted(9),
            r'evaluation\.zero_shot x \(x\): the caption "blue" is none of the 2 class names',
        ),
        (
            EvaluationConfig(retrieval=False, zero_shot=[ZeroShotTask("x", list(COLOURS))]),
            Painted(9, colours=["red"]),
            'all 9 pictures are of the class "red"',
        ),
        (
            EvaluationConfig(retrieval=False, probe=[ProbeTask("x", "x")]),
            Painted(9, colours=["red"]),
            "all captions of x are the same",
        ),
        (EvaluationConfig(probe=[ProbeTask("x", "x")]), Painted(4), "each caption of x occurs once only"),
    ],
)
def test_what_could_only_fail_later_is_refused_before_the_model_runs(
    config: EvaluationConfig, pairs: Painted, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        one_set(config, lambda _: pairs, held="x")


def test_a_label_that_training_never_saw_is_refused() -> None:
    sets = {"train": Painted(20, colours=["red", "blue"]), "test": Painted(20)}
    config = EvaluationConfig(probe=[ProbeTask("train", "test")])
    with pytest.raises(RecipeError, match='the caption "grün" of test does not occur in train'):
        one_set(config, sets.__getitem__)
