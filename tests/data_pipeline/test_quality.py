"""The learned filter: training, scores, the draw, and the file it is kept in."""

from __future__ import annotations

import ast
import json
import sysconfig
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, lomax
from threadpoolctl import threadpool_limits

from data_pipeline.errors import BadConfig, BadCorpus, EnvironmentFailure
from data_pipeline.quality import (
    Classifier,
    QualityConfig,
    QualityReport,
    features,
    keep,
    keep_probability,
    pareto_draws,
    train_classifier,
)

KEYS = np.arange(200_000, dtype=np.uint64)  # the worst keys there are: one after another
CONFIG = QualityConfig(features=1 << 14)


@cache
def docstrings_and_code() -> tuple[list[str], list[str]]:
    """What the standard library says, and what it does."""
    docstrings, code = [], []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-p]*.py")):
        source = path.read_text(errors="replace")
        lines = source.split("\n")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                docstring = ast.get_docstring(node)
                if docstring and len(docstring) > 100:
                    docstrings.append(docstring)
                elif isinstance(node, ast.FunctionDef) and node.end_lineno and node.end_lineno - node.lineno > 4:
                    code.append("\n".join(lines[node.lineno - 1 : node.end_lineno]))
    return docstrings[:600], code[:900]


@cache
def trained(seed: int = 0) -> tuple[Classifier, QualityReport]:
    return train_classifier(*docstrings_and_code(), CONFIG, seed)


def test_docstrings_are_told_from_code() -> None:
    classifier, report = trained()
    assert report.auc > 0.95
    assert report.kept_curated > 0.5 and report.kept_raw < 0.05
    assert (report.curated_documents, report.held_out_curated) == (540, 60)
    assert (report.raw_documents, report.held_out_raw) == (810, 90)
    unseen = classifier.scores(
        [
            "Return the sum of the two numbers, or None if there is no such value.",
            "def add(self, a, b):\n    if a is None:\n        return b\n    return a + b\n",
        ]
    )
    assert unseen[0] > 0.8 and unseen[1] < 0.2


def test_the_report_is_json_and_its_curve_is_one() -> None:
    report = trained()[1]
    points = np.array(json.loads(json.dumps(asdict(report), allow_nan=False))["roc"])
    assert len(points) <= 200 and points[0, :2].tolist() == [0, 0] and points[-1, :2].tolist() == [1, 1]
    assert (np.diff(points[:, :2], axis=0) >= 0).all() and (np.diff(points[:, 2]) <= 0).all()
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(report.auc, abs=0.01)


def test_training_does_not_depend_on_order_but_on_the_seed() -> None:
    docstrings, code = docstrings_and_code()
    classifier, report = train_classifier(docstrings[::-1], code[::-1], CONFIG, 0)
    assert classifier.weights.tobytes() == trained()[0].weights.tobytes() and report == trained()[1]
    assert trained(1)[0].weights.tobytes() != classifier.weights.tobytes()


def test_training_does_not_depend_on_the_number_of_threads() -> None:
    weights = []
    for threads in (1, 3):
        with threadpool_limits(limits=threads):
            weights.append(train_classifier(*docstrings_and_code(), QualityConfig(), 0)[0].weights.tobytes())
    assert weights[0] == weights[1]


def test_features_are_counts_of_lower_case_words_scaled_to_length_one() -> None:
    buckets, values = features("The the\nTHE cat", 1 << 18)
    assert sorted(values.tolist()) == pytest.approx([1 / 10**0.5, 3 / 10**0.5]) and len(buckets) == 2
    assert len(features("", 1 << 18)[0]) == 0


@given(st.lists(st.text(st.characters()), max_size=3))
def test_any_text_has_a_score_between_0_and_1(texts: list[str]) -> None:
    scores = Classifier(np.full(64, 1e3, dtype=np.float32), -2e3).scores(texts)
    assert scores.shape == (len(texts),) and ((scores >= 0) & (scores <= 1)).all()


def test_too_many_documents_are_thinned_out() -> None:
    config = QualityConfig(features=1 << 14, max_training_documents=100)
    report = train_classifier(*docstrings_and_code(), config, 0)[1]
    assert (report.curated_documents, report.held_out_curated, report.raw_documents) == (90, 10, 90)


@pytest.mark.parametrize("alpha", [1.0, 9.0])
def test_draws_are_paretos(alpha: float) -> None:
    draws = pareto_draws(KEYS, 7, alpha)
    assert kstest(draws, lomax(alpha).cdf).pvalue > 0.001
    assert abs(np.corrcoef(draws[:-1] < 0.05, draws[1:] < 0.05)[0, 1]) < 0.01
    assert abs(np.corrcoef(draws < 0.05, pareto_draws(KEYS, 8, alpha) < 0.05)[0, 1]) < 0.01


@pytest.mark.parametrize("score", [0.0, 0.3, 0.6, 0.8, 0.95, 1.0])
def test_the_share_that_is_kept_is_that_of_theory(score: float) -> None:
    kept = keep(np.full(len(KEYS), score), KEYS, 0, 9.0)
    expected = (2 - score) ** -9
    assert keep_probability(np.array([score]), 9.0)[0] == pytest.approx(expected)
    assert kept.mean() == pytest.approx(expected, abs=4 * (expected * (1 - expected) / len(KEYS)) ** 0.5 + 1e-4)


def test_a_documents_fate_is_its_own_and_better_ones_stay() -> None:
    scores = np.linspace(0, 1, len(KEYS))
    kept = keep(scores, KEYS, 0, 9.0)
    assert (keep(scores[1000:1010], KEYS[1000:1010], 0, 9.0) == kept[1000:1010]).all()
    assert (keep(np.minimum(scores + 0.1, 1), KEYS, 0, 9.0) >= kept).all()
    assert keep(scores, KEYS, 0, 0.0).all()


def test_a_saved_classifier_comes_back(tmp_path: Path) -> None:
    classifier, texts = trained()[0], docstrings_and_code()[0]
    classifier.save(tmp_path / "a.npz")
    again = Classifier.load(tmp_path / "a.npz")
    assert (again.scores(texts) == classifier.scores(texts)).all()
    again.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_damaged_classifier_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "classifier.npz"
    classifier = Classifier(np.arange(40, dtype=np.float32), 0.5)
    classifier.save(path)
    content = path.read_bytes()
    messages = []
    for place in range(0, len(content), 2):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x11]) + content[place + 1 :])
        try:
            loaded = Classifier.load(path)  # a time stamp, say, may be anything
            assert (loaded.weights == classifier.weights).all() and loaded.intercept == 0.5
        except EnvironmentFailure as error:
            messages.append(str(error))
    assert len(messages) > len(content) / 4 and all(str(path) in m and "\n" not in m for m in messages)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(EnvironmentFailure, match="train it again"):
        Classifier.load(path)
    with pytest.raises(EnvironmentFailure, match="No such file"):
        Classifier.load(tmp_path / "nothing.npz")
    np.savez(path, weights=np.array([1.0, np.nan], dtype=np.float32), intercept=np.float64(0))
    with pytest.raises(EnvironmentFailure, match="not finite"):
        Classifier.load(path)
    with open(path, "wb") as file:
        np.save(file, np.array([object()]), allow_pickle=True)
    with pytest.raises(EnvironmentFailure, match="pickle"):
        Classifier.load(path)


@pytest.mark.parametrize(
    ("curated", "raw", "config", "error", "message"),
    [
        ([], ["a"] * 10, QualityConfig(), BadCorpus, "10 curated documents .* there are 0: name more corpora"),
        (["a"] * 10, ["b"] * 9, QualityConfig(), BadCorpus, "10 raw documents .* there are 9"),
        (["a"], ["b"], QualityConfig(held_out=1.0), BadConfig, "held_out is 1.0"),
        (["a"], ["b"], QualityConfig(features=1), BadConfig, "features is 1"),
        (["a"], ["b"], QualityConfig(pareto_alpha=-1), BadConfig, "pareto_alpha is -1"),
        (["a"], ["b"], QualityConfig(inverse_regularization=0), BadConfig, "inverse_regularization is 0"),
        (["a"], ["b"], QualityConfig(max_training_documents=9), BadConfig, "max_training_documents is 9"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    curated: list[str], raw: list[str], config: QualityConfig, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        train_classifier(curated, raw, config, 0)
    assert "\n" not in str(raised.value)
