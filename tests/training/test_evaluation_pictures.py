"""Pictures of scores: shape, what is marked as right, and long or odd texts."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation import drawing
from training.evaluation.drawing import RIGHT, Picture
from training.evaluation.pictures import (
    Example,
    Found,
    captions_found,
    confusion_matrix,
    pictures_found,
    similarity_matrix,
)

LONG = (
    "a very long caption that goes on and on about a dog on the beach in the evening sun and never comes to an end " * 3
)


def grey(height: int = 8, width: int = 24) -> Picture:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def count(picture: Picture, colour: drawing.Colour) -> int:
    assert picture.dtype == np.uint8 and picture.ndim == 3
    return int((picture == np.array(colour, dtype=np.uint8)).all(-1).sum())


@pytest.mark.parametrize("classes", [2, 5, 24, 25, 100, 361, 3000])
def test_a_confusion_matrix_fits_any_number_of_classes(classes: int) -> None:
    labels = np.arange(4 * classes) % classes
    names = [f"{LONG} {number}" for number in range(classes)]
    right = confusion_matrix(labels, labels, names, "title")
    wrong = confusion_matrix(labels, (labels + classes // 2) % classes, names, "title")
    assert max(right.shape) < 1300 and min(right.shape[:2]) > 180
    assert right.shape == wrong.shape and not np.array_equal(right, wrong)
    dark = drawing.colours(np.array([1.0]))[0]
    assert count(right, tuple(dark.tolist())) > 50


def test_classes_without_pictures_and_huge_counts_are_no_trouble() -> None:
    labels = np.zeros(200_000, dtype=np.int64)
    confusion_matrix(labels, labels, ["one", "none", ""], "")


@pytest.mark.parametrize("size", [1, 2, 12, 20])
def test_a_similarity_matrix_frames_what_belongs_together(size: int) -> None:
    cosines = np.random.default_rng(0).uniform(-1, 1, (size, size)).astype(np.float32)
    picture = similarity_matrix(cosines, [grey(9 + 40 * i, 300) for i in range(size)], [LONG] * size, "title")
    assert count(picture, RIGHT) > size * 300
    similarity_matrix(np.zeros((size, size), dtype=np.float32), [grey()] * size, [""] * size, LONG)


def test_right_answers_are_marked_and_the_rank_of_those_that_are_not_shown_is_said() -> None:
    def found(right: bool) -> list[Found]:
        return [Found(grey(), right and place == 1, 0.5) for place in range(5)]

    shown = pictures_found([Example("caption", found(True), 2)], "title")
    hidden = pictures_found([Example("caption", found(False), 1237)], "title")
    assert count(shown, RIGHT) > 300 and count(hidden, RIGHT) == 0
    margin = hidden.shape[1] - 100
    assert count(hidden[80:, margin:], drawing.INK) > 20 and count(shown[80:, margin:], drawing.INK) == 0


def test_texts_found_are_marked_alike() -> None:
    def found(right: bool) -> list[Found]:
        return [Found(LONG, right and place == 0, score) for place, score in enumerate((1.0, 0.2, -0.3))]

    shown = captions_found([Example(grey(500, 30), found(True), 1), Example(grey(1, 1), found(False), 22)], "title")
    hidden = captions_found([Example(grey(), found(False), 22)], "title")
    assert count(shown, RIGHT) > 300 and count(hidden, RIGHT) == 0


@pytest.mark.parametrize("width", [20, 90, 400])
def test_texts_stay_within_their_width(width: int) -> None:
    for text in (LONG, "x" * 300, "Zürich", "", "日本語" * 40):
        for line in [drawing.shorten(text, 15, width), *drawing.wrap(text, 15, width, 3)]:
            assert drawing.width_of(line, 15) <= width
        assert len(drawing.wrap(text, 15, width, 3)) <= 3
    assert drawing.shorten("class number 17 of the kind", 15, 120, ending=4).endswith("kind")
    assert drawing.plain("Ünïcode\n café") == "Unicode cafe"


def test_a_place_is_named_in_words() -> None:
    said = [drawing.ordinal(number) for number in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111, 1237)]
    assert said == ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th", "1,237th"]
