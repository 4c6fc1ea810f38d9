"""GPT-3's learned filter: keeps raw documents that look like curated ones, and by chance some of the others.

Brown et al. 2020, appendix A: logistic regression on hashed words tells curated from raw documents, and a document with
score s is kept if `numpy.random.pareto(9) > 1 - s`, that is with probability (2 - s)^-9. As there, words are lower-case
and delimited by whitespace, and a feature is how often its words occur. Unlike there, a document's features are scaled
to length 1, so that long documents are not surer than short ones, and both sides weigh the same in training, however
many documents each has.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import BadConfig, BadCorpus, EnvironmentFailure
from data_pipeline.permutation import derive_key
from data_pipeline.stages.words import find_words

_MINIMUM_DOCUMENTS = 10
_ROC_POINTS = 200
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile)
_GOLDEN, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass
class QualityConfig:
    """The learned filter (Brown et al. 2020, appendix A)."""

    curated: list[str] = field(default_factory=list)
    """Names of the corpora that raw documents are to look like."""
    pareto_alpha: float = 9.0
    """Shape of the draw: a document with score s is kept with probability (2 - s)^-alpha. 0 keeps all."""
    max_training_documents: int = 50_000
    """Documents of each side to train on at most, held-out ones included."""
    features: int = 1 << 18
    """Buckets that words are hashed into."""
    inverse_regularization: float = 10.0
    """C of the logistic regression: the larger, the surer the scores."""
    held_out: float = 0.1
    """Share of the documents that is not trained on but measured with."""


@dataclass
class QualityReport:
    """What the classifier is worth, on documents that it was not trained on."""

    curated_documents: int
    raw_documents: int
    held_out_curated: int
    held_out_raw: int
    auc: float
    """Probability that a curated document scores higher than a raw one."""
    roc: list[tuple[float, float, float]]
    """(raw taken for curated, curated taken for curated, score from which on); at most 200 points."""
    kept_curated: float
    """Share of the curated documents that the draw would keep, expected."""
    kept_raw: float
    """... of the raw documents."""


class Classifier:
    """Scores documents. weights: [features] float32, intercept: on the logit scale."""

    def __init__(self, weights: NDArray[np.float32], intercept: float) -> None:
        self.weights = weights
        self.intercept = intercept

    def scores(self, texts: Iterable[str]) -> NDArray[np.float64]:
        """[texts] How much each looks like a curated document, from 0 to 1."""
        logits = []
        for text in texts:
            buckets, values = features(text, len(self.weights))
            logits.append(self.intercept + float(np.sum(self.weights[buckets] * values)))
        return 0.5 * (1 + np.tanh(0.5 * np.array(logits, dtype=np.float64)))  # the logistic function, never overflowing

    def save(self, path: Path) -> None:
        """Writes one .npz file; equal classifiers give equal bytes."""
        with open(path, "wb") as file:
            np.savez(file, weights=self.weights, intercept=np.float64(self.intercept))

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """What `save` wrote. Raises EnvironmentFailure for anything else."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                weights, intercept = arrays["weights"], arrays["intercept"]
        except _UNREADABLE as error:
            raise EnvironmentFailure(f"{path} is no classifier or is damaged ({error}): train it again") from error
        whole = weights.dtype == np.float32 and weights.ndim == 1 and len(weights) and intercept.shape == ()
        if not (whole and np.isfinite(weights).all() and np.isfinite(intercept)):
            raise EnvironmentFailure(f"{path} is no classifier or is damaged (not finite weights): train it again")
        return cls(weights, float(intercept))


def features(text: str, buckets: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The buckets of the text's words, ascending, and how often each is hit, scaled to length 1."""
    hit = (find_words(text, "lower").hashes % np.uint64(buckets)).astype(np.int64)
    found, counts = np.unique(hit, return_counts=True)
    return found, counts / max(1.0, float(np.sqrt(np.sum(counts * counts))))


def train_classifier(
    curated: Sequence[str], raw: Sequence[str], config: QualityConfig, seed: int
) -> tuple[Classifier, QualityReport]:
    """A classifier, and how it does on held-out documents.

    The result depends on which documents there are and on the seed, not on their order or on the number of threads.
    Raises BadConfig, and BadCorpus for a side with fewer than 10 documents.
    """
    check_config(config)
    of_curated, of_raw = _sample(curated, "curated", config, seed), _sample(raw, "raw", config, seed)
    curated_out, raw_out = (max(1, round(config.held_out * len(side))) for side in (of_curated, of_raw))
    classifier = _fit(of_curated[curated_out:], of_raw[raw_out:], config)
    curated_scores = classifier.scores(of_curated[:curated_out])
    raw_scores = classifier.scores(of_raw[:raw_out])
    auc, roc = _roc(curated_scores, raw_scores)
    return classifier, QualityReport(
        curated_documents=len(of_curated) - curated_out,
        raw_documents=len(of_raw) - raw_out,
        held_out_curated=curated_out,
        held_out_raw=raw_out,
        auc=auc,
        roc=roc,
        kept_curated=float(keep_probability(curated_scores, config.pareto_alpha).mean()),
        kept_raw=float(keep_probability(raw_scores, config.pareto_alpha).mean()),
    )


def keep_probability(scores: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Of documents with these scores: P(pareto(alpha) > 1 - s) = (2 - s)^-alpha."""
    kept: NDArray[np.float64] = (2.0 - scores) ** -alpha
    return kept


def pareto_draws(keys: NDArray[np.uint64], seed: int, alpha: float) -> NDArray[np.float64]:
    """One draw for each key, distributed as `numpy.random.pareto(alpha)` (Lomax); a function of key and seed alone."""
    mixed = _finalise(_finalise(keys + np.uint64(derive_key(seed, "pareto"))) + _GOLDEN)
    uniform = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    draws: NDArray[np.float64] = (1.0 - uniform) ** (-1.0 / alpha) - 1.0
    return draws


def keep(scores: NDArray[np.float64], keys: NDArray[np.uint64], seed: int, alpha: float) -> NDArray[np.bool_]:
    """Which documents stay. keys: a 64-bit hash of each document, so that its fate is its own. alpha 0 keeps all."""
    if alpha == 0:
        return np.ones(len(scores), dtype=bool)
    return pareto_draws(keys, seed, alpha) > 1.0 - scores


def check_config(config: QualityConfig) -> None:
    """Raises BadConfig for a value that cannot work."""
    if not 0 < config.held_out < 1:
        raise BadConfig(f"quality.held_out is {config.held_out}, it must lie between 0 and 1")
    if not 2 <= config.features <= 1 << 30:
        raise BadConfig(f"quality.features is {config.features}, it must be from 2 to 2^30")
    if not 0 <= config.pareto_alpha < math.inf:
        raise BadConfig(f"quality.pareto_alpha is {config.pareto_alpha}, it must not be negative")
    if not config.inverse_regularization > 0:
        raise BadConfig(f"quality.inverse_regularization is {config.inverse_regularization}, it must be positive")
    if config.max_training_documents < _MINIMUM_DOCUMENTS:
        least = f"it must be at least {_MINIMUM_DOCUMENTS}"
        raise BadConfig(f"quality.max_training_documents is {config.max_training_documents}, {least}")


def _sample(texts: Sequence[str], side: str, config: QualityConfig, seed: int) -> list[str]:
    """At most as many as wanted, in an order drawn by hash."""
    if len(texts) < _MINIMUM_DOCUMENTS:
        mend = "name more corpora in quality.curated" if side == "curated" else "leave the stage quality out"
        raise BadCorpus(
            f"the learned filter needs {_MINIMUM_DOCUMENTS} {side} documents to train on, but there are {len(texts)}: "
            f"{mend}"
        )
    key = derive_key(seed, "quality sample").to_bytes(8, "little")

    def rank(text: str) -> bytes:
        return hashlib.blake2b(text.encode(errors="surrogatepass"), key=key, digest_size=16).digest()

    return sorted(texts, key=rank)[: config.max_training_documents]


def _fit(curated: Sequence[str], raw: Sequence[str], config: QualityConfig) -> Classifier:
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    rows = [features(text, config.features) for text in (*curated, *raw)]
    starts = np.cumsum([0] + [len(found) for found, _ in rows])
    matrix = csr_matrix(
        (np.concatenate([values for _, values in rows]), np.concatenate([found for found, _ in rows]), starts),
        shape=(len(rows), config.features),
    )
    with threadpool_limits(limits=1):  # the order in which sums are taken must not depend on the number of threads
        model: Any = LogisticRegression(C=config.inverse_regularization, class_weight="balanced", max_iter=1000)
        model.fit(matrix, np.arange(len(rows)) < len(curated))
    return Classifier(model.coef_[0].astype(np.float32), float(model.intercept_[0]))


def _roc(curated: NDArray[np.float64], raw: NDArray[np.float64]) -> tuple[float, list[tuple[float, float, float]]]:
    from sklearn.metrics import roc_auc_score, roc_curve

    labels = np.arange(len(curated) + len(raw)) < len(curated)
    scores = np.concatenate([curated, raw])
    wrong, right, thresholds = roc_curve(labels, scores)
    shown = np.unique(np.linspace(0, len(wrong) - 1, min(len(wrong), _ROC_POINTS)).round().astype(np.int64))
    points = zip(wrong[shown].tolist(), right[shown].tolist(), np.minimum(thresholds[shown], 1.0).tolist(), strict=True)
    return float(roc_auc_score(labels, scores)), list(points)


def _finalise(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele et al. 2014, figure 16)."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))
