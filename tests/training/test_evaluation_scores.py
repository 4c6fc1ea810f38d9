"""Zero-shot, retrieval, nearest neighbours and linear probe are what their definitions say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix, recall_score, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from training.errors import RecipeError
from training.evaluation import neighbours, probe, zero_shot
from training.evaluation.config import TEMPLATES
from training.evaluation.retrieval import distinct, retrieve
from training.evaluation.similarity import TIE


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ── zero-shot ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_zero_shot_scores_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero_shot, "_ROWS", 64)  # several chunks, the last one short
    weights, labels = noise(7, 16, seed=1), torch.arange(300) % 6  # no picture of the last class
    images = weights[labels] + 1.5 * noise(300, 16)
    found = zero_shot.classify(images, weights, labels)
    unit = torch.nn.functional.normalize
    scores = (unit(images) @ unit(weights).T).numpy()
    assert found.top1 == pytest.approx(top_k_accuracy_score(labels, scores, k=1, labels=range(7)))
    assert found.top5 == pytest.approx(top_k_accuracy_score(labels, scores, k=5, labels=range(7)))
    assert 0.3 < found.top1 < 0.95
    assert np.array_equal(found.predictions, scores.argmax(1))
    assert found.mean_per_class == pytest.approx(
        recall_score(labels, scores.argmax(1), labels=range(6), average="macro")
    )
    counts = zero_shot.confusion(found.labels, found.predictions, found.classes)
    assert np.array_equal(counts, confusion_matrix(labels, scores.argmax(1), labels=range(7)))


def test_a_class_weighs_the_mean_of_its_texts_at_length_one() -> None:
    features = noise(3 * 4, 8)
    expected = []
    for texts in features.numpy().reshape(3, 4, 8).astype(np.float64):
        mean = np.mean([text / np.linalg.norm(text) for text in texts], axis=0)
        expected.append(mean / np.linalg.norm(mean))
    assert np.allclose(zero_shot.class_weights(features, 3), expected, atol=1e-6)
    assert zero_shot.prompts(["cat", "{}"], ["a {}.", "{} {}"]) == ["a cat.", "cat cat", "a {}.", "{} {}"]


def test_perfect_features_are_always_right_and_random_ones_by_chance() -> None:
    weights, labels = noise(10, 32), torch.arange(3000) % 10
    perfect = zero_shot.classify(weights[labels], weights, labels)
    assert (perfect.top1, perfect.top5, perfect.mean_per_class) == (1.0, 1.0, 1.0)
    chance = zero_shot.classify(noise(3000, 32, seed=1), weights, labels)
    assert chance.top1 == pytest.approx(0.1, abs=0.03) and chance.top5 == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_collapsed_features_score_nothing(rounding: float) -> None:
    """All pictures and texts are the same, up to what fp32 can tell apart."""
    same = noise(1, 32).expand(40, 32) + rounding * noise(40, 32, seed=1)
    found = zero_shot.classify(same, same[:10], torch.arange(40) % 10)
    assert (found.top1, found.top5, found.mean_per_class) == (0.0, 0.0, 0.0)
    assert not (found.predictions == found.labels).any()
    retrieved = retrieve(same, same, torch.arange(40)[:, None].expand(40, 2))
    for direction in (retrieved.image_to_text, retrieved.text_to_image):
        assert direction.ranks.tolist() == [40] * 40 and direction.recall(10) == 0.0


def test_with_few_classes_there_is_no_top_five() -> None:
    found = zero_shot.classify(noise(9, 4), noise(5, 4, seed=1), torch.arange(9) % 5)
    assert "top5" not in found.figures() and set(found.figures()) == {"top1", "mean_per_class"}


def test_captions_become_labels() -> None:
    classes = ["cat", "Dog", "photo of a cat"]
    captions = ["a  photo of a dog.", "DOG", "cat", "photo of a cat", "a photo of a cat."]
    assert zero_shot.labels_of(captions, classes, TEMPLATES).tolist() == [1, 1, 0, 2, 0]
    with pytest.raises(RecipeError, match='pets: the caption "a bird" is none of the 3 class names'):
        zero_shot.labels_of(["cat", "a bird"], classes, TEMPLATES, what="pets")
    with pytest.raises(RecipeError, match='could be of the classes "cat" and "photo of a cat"'):
        zero_shot.labels_of(["a photo of a cat"], classes, ["a photo of a {}", "a {}"])
    with pytest.raises(RecipeError, match='all 2 pictures are of the class "Dog"'):
        zero_shot.labels_of(["dog", "dog"], classes)


def test_features_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="one class only"):
        zero_shot.classify(noise(4, 2), noise(1, 2), torch.zeros(4, dtype=torch.int64))
    broken = noise(4, 2)
    broken[2, 1] = torch.nan
    with pytest.raises(ValueError, match="image features are not finite"):
        zero_shot.classify(broken, noise(2, 2), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ValueError, match="not finite"):
        retrieve(broken, noise(4, 2), torch.arange(4)[:, None].expand(4, 2))
    with pytest.raises(ValueError, match="not each text of 4 has its counterpart"):
        retrieve(noise(2, 2), noise(4, 2), torch.tensor([[0, 0], [1, 2], [1, 3]]))


# ── retrieval ────────────────────────────────────────────────────────────────────────────────────────────────────────


def by_definition(cosines: np.ndarray, right: np.ndarray) -> list[int]:
    """Row by row, one more than the wrong answers that reach the best right one."""
    ranks = []
    for row, mine in zip(cosines, right, strict=True):
        best = max(c for c, is_right in zip(row, mine, strict=True) if is_right)
        ranks.append(1 + sum(c >= best - TIE for c, is_right in zip(row, mine, strict=True) if not is_right))
    return ranks


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_ranks_are_those_of_the_definition_for_any_relation_tile_and_tie(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    captions = data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    looks = data.draw(st.lists(st.integers(0, 8), min_size=count, max_size=count))
    first_image, picture_of = distinct(looks)
    first_text, text_of = distinct(captions)
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    # Few small whole numbers: equal cosines are common.
    images = rng.integers(-1, 2, (len(first_image), 3)) + np.array([0.0, 0.0, 3.0])
    texts = rng.integers(-1, 2, (len(first_text), 3)) + np.array([0.0, 0.0, 3.0])
    pairs = torch.stack([picture_of, text_of], 1)
    tile = data.draw(st.integers(1, 5))
    found = retrieve(torch.tensor(images), torch.tensor(texts), pairs, tile=tile)
    right = np.zeros((len(images), len(texts)), dtype=bool)
    right[pairs[:, 0], pairs[:, 1]] = True
    unit = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in (images, texts)]
    cosines = unit[0] @ unit[1].T
    assert found.image_to_text.ranks.tolist() == by_definition(cosines, right)
    assert found.text_to_image.ranks.tolist() == by_definition(cosines.T, right.T)


def test_order_of_the_pairs_does_not_matter() -> None:
    images, texts = noise(50, 16), noise(30, 16, seed=1)
    pairs = torch.stack([torch.arange(50), torch.arange(50) % 30], 1)
    shuffled, others = torch.randperm(50, generator=torch.Generator().manual_seed(2)), torch.arange(30).flip(0)
    moved = torch.stack([shuffled.argsort()[pairs[:, 0]], others.argsort()[pairs[:, 1]]], 1)
    moved = moved[torch.randperm(50, generator=torch.Generator().manual_seed(3))]
    found = retrieve(images, texts, pairs, tile=16)
    again = retrieve(images[shuffled], texts[others], moved, tile=7)
    assert again.image_to_text.ranks.tolist() == found.image_to_text.ranks[shuffled].tolist()
    assert again.figures() == pytest.approx(found.figures())


def test_perfect_pairs_come_first_and_random_ones_by_chance() -> None:
    features = noise(400, 64)
    pairs = torch.arange(400)[:, None].expand(400, 2)
    perfect = retrieve(features, 3 * features, pairs).figures()
    assert perfect == {
        f"{direction}_{figure}": 1.0
        for direction in ("image_to_text", "text_to_image")
        for figure in ("r1", "r5", "r10", "median_rank", "mean_rank")
    }
    chance = retrieve(features, noise(400, 64, seed=1), pairs).figures()
    assert chance["image_to_text_r10"] == pytest.approx(10 / 400, abs=0.02)
    assert chance["text_to_image_mean_rank"] == pytest.approx(200, abs=20)


def test_any_picture_of_a_caption_and_any_caption_of_a_picture_is_right() -> None:
    """Pictures 0 and 1 share a caption; picture 2 has two. Each is most like another than its own first partner."""
    east, north, up = torch.eye(3)
    images = torch.stack([east, north, up])
    texts = torch.stack([north + 0.1 * east, up, east])
    found = retrieve(images, texts, torch.tensor([[0, 0], [1, 0], [2, 1], [2, 2]]))
    assert found.image_to_text.ranks.tolist() == [2, 1, 1]
    assert found.text_to_image.ranks.tolist() == [1, 1, 3]  # the two others are at right angles, and tie


def test_a_recall_that_could_not_be_missed_is_not_reported() -> None:
    figures = retrieve(noise(6, 4), noise(3, 4), torch.tensor([[i, i % 3] for i in range(6)])).figures()
    assert set(figures) == {
        "image_to_text_r1", "image_to_text_median_rank", "image_to_text_mean_rank",
        "text_to_image_r1", "text_to_image_r5", "text_to_image_median_rank", "text_to_image_mean_rank",
    }  # fmt: skip


# ── nearest neighbours ───────────────────────────────────────────────────────────────────────────────────────────────


def test_neighbours_vote_as_scikit_learns_do() -> None:
    train, test, labels = noise(200, 8), noise(300, 8, seed=1), torch.arange(200) % 5
    found = neighbours.predict(train, labels, test, classes=5, neighbours=12, tile=50)

    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / neighbours.TEMPERATURE)

    reference = KNeighborsClassifier(12, metric="cosine", algorithm="brute", weights=weights).fit(train, labels)
    assert np.array_equal(found, reference.predict(test))
    assert torch.equal(found, neighbours.predict(train, labels, test, classes=5, neighbours=12, tile=7))


def test_fewer_examples_than_neighbours_all_vote() -> None:
    train = torch.eye(3)
    assert neighbours.predict(train, torch.tensor([2, 0, 1]), train, classes=3).tolist() == [2, 0, 1]


# ── linear probe ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_sweep_halves_the_distance_around_the_peak_down_to_an_eighth_of_a_decade() -> None:
    asked: list[list[float]] = []

    def score(c: float) -> float:
        return -abs(np.log10(c) - 1.3)

    def share(function: object, arguments: list[float]) -> list[float]:
        asked.append([round(np.log10(c), 4) for c in arguments])
        return [score(c) for c in arguments]

    best, _, tried = probe.sweep(score, share)
    assert asked[0] == [-6, -4, -2, 0, 2, 4, 6]
    assert asked[1:] == [[1, 3], [0.5, 1.5], [1.25, 1.75], [1.125, 1.375]]
    assert np.log10(best) == pytest.approx(1.25)
    assert len(tried) == 15 and list(tried) == sorted(tried)


@pytest.mark.parametrize(("peak", "count"), [(-6, 11), (6, 11)])
def test_the_sweep_stays_in_its_range(peak: float, count: int) -> None:
    best, _, tried = probe.sweep(lambda c: -abs(np.log10(c) - peak))
    assert np.log10(best) == pytest.approx(peak)
    assert len(tried) == count and min(tried) >= 1e-6 * (1 - 1e-9) and max(tried) <= 1e6 * (1 + 1e-9)
    assert probe.sweep(lambda c: 0.5)[0] == 1.0  # of equals the middle one


def test_a_fifth_of_each_class_is_held_out() -> None:
    labels = np.array([0] * 10 + [1] * 4 + [2] + [3] * 7)
    held_out = probe.validation_split(labels)
    assert [int(held_out[labels == c].sum()) for c in range(4)] == [2, 1, 0, 1]


def test_a_probe_reads_digits_off_their_pixels() -> None:
    data, target = load_digits(return_X_y=True)
    features, labels = torch.tensor(data / 16, dtype=torch.float32), torch.tensor(target)
    # Two classes of it, so that the fits with hardly any penalty end soon.
    chosen = torch.tensor(np.flatnonzero(np.isin(target, (3, 8))))
    train, test = chosen[:240], chosen[240:]
    found = probe.probe(features[train], labels[train], features[test], labels[test])
    assert found.accuracy > 0.9 and found.validation_accuracy > 0.9
    assert 1e-6 < found.c < 1e6
    blind = probe.probe(torch.ones(240, 4), labels[train], torch.ones(len(test), 4), labels[test])
    assert blind.accuracy < 0.6


def test_a_probe_refuses_what_teaches_nothing() -> None:
    one = torch.zeros(6, dtype=torch.int64)
    with pytest.raises(RecipeError, match="one class only"):
        probe.probe(noise(6, 2), one, noise(6, 2), one)
    each = torch.arange(6)
    with pytest.raises(RecipeError, match="one picture of each class"):
        probe.probe(noise(6, 2), each, noise(6, 2), each)
