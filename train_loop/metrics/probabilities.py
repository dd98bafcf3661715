"""Metrics of probabilities [N, C] float64 for labels that are class numbers [N].

Definitions are scikit-learn's, and tested against it. Rank metrics are one-vs-rest, and NaN for a class without rows,
or without rows of other classes.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NUM_BINS = 15
"""Bins of the reliability diagram, as in Guo et al. 2017."""
AREAS = ("roc_auc", "average_precision")


def row_log_losses(probabilities: Floats, labels: NDArray[np.int64]) -> Floats:
    """Return -log p(true class) of each row [N]; p is at least float64's epsilon."""
    own = probabilities[np.arange(len(labels)), labels]
    return -np.log(np.clip(own, np.finfo(np.float64).eps, 1.0))


def log_loss(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    """Return the mean of -log p(true class)."""
    return float(row_log_losses(probabilities, labels).mean())


def row_brier_scores(probabilities: Floats, labels: NDArray[np.int64]) -> Floats:
    """Return each row's squared distance to its one-hot label [N] (Brier 1950); halved for two classes, 0 to 1."""
    own = probabilities[np.arange(len(labels)), labels]
    distances: Floats = (probabilities**2).sum(axis=1) - own**2 + (1.0 - own) ** 2
    return distances / 2.0 if probabilities.shape[1] == 2 else distances


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Rows binned by the score of their predicted label, from 0 to 1; arrays are [NUM_BINS]."""

    num_rows: NDArray[np.int64]
    scores: Floats  # mean score of each bin; NaN if empty
    accuracies: Floats  # accuracy of each bin; NaN if empty

    @property
    def expected_calibration_error(self) -> float:
        """Return the mean |accuracy - score| over rows (Naeini et al. 2015)."""
        return float(np.nansum(np.abs(self.accuracies - self.scores) * self.num_rows) / self.num_rows.sum())


def reliability(probabilities: Floats, labels: NDArray[np.int64]) -> Reliability:
    """Return the accuracy of predictions as a function of their score."""
    return binned(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)


def binned(scores: Floats, is_right: NDArray[np.bool_]) -> Reliability:
    """Return how often what has a score [N] is right [N]."""
    bins = np.minimum((scores * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    num_rows = np.bincount(bins, minlength=NUM_BINS)
    safe = np.where(num_rows > 0, num_rows, np.nan)
    means = (np.bincount(bins, weights=each, minlength=NUM_BINS) / safe for each in (scores, is_right))
    return Reliability(num_rows, *means)


class Ranking:
    """Rows sorted once by the probability of a class, for curves and areas under any row weights.

    They are given by the probability of the class [N], and whether they are of it [N].
    """

    def __init__(self, scores: Floats, is_class: NDArray[np.bool_]) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        self._ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # last row of each distinct score
        self._is_class = is_class[self._order].astype(np.float64)

    def counts(self, weights: NDArray[np.number] | None = None) -> tuple[Floats, Floats]:
        """Return true and false positives at each distinct score, in descending order: [K] each."""
        hits = self._is_class if weights is None else self._is_class * weights[self._order]
        total = np.arange(1.0, len(hits) + 1) if weights is None else np.cumsum(weights[self._order], dtype=np.float64)
        true = np.cumsum(hits)
        return true[self._ends], (total - true)[self._ends]

    def areas(self, weights: NDArray[np.number] | None = None) -> tuple[float, float]:
        true, false = self.counts(weights)
        positives, negatives = true[-1], false[-1]
        if positives <= 0 or negatives <= 0:
            return float("nan"), float("nan")
        more_true, more_false = _increments(true), _increments(false)
        heights = true - more_true / 2.0  # of the trapezoids between neighbouring scores
        roc_auc = (heights * more_false).sum() / (positives * negatives)
        found = np.maximum(true + false, 1e-300)
        average_precision = (more_true * (true / found)).sum() / positives
        return float(roc_auc), float(average_precision)


def _increments(counts: Floats) -> Floats:
    """Return the differences of neighbours, the first from 0: np.diff(prepend=0) in a fifth of the time."""
    differences = counts.copy()
    differences[1:] -= counts[:-1]
    return differences


def rankings(scores: Floats, labels: NDArray[np.integer] | NDArray[np.bool_]) -> list[Ranking]:
    """Return one ranking per class of scores [N, C]; labels are class numbers [N], or which each row has [N, C]."""
    is_class = labels if labels.ndim == 2 else labels[:, None] == np.arange(scores.shape[1])
    return [Ranking(*columns) for columns in zip(scores.T, is_class.T, strict=True)]


def mean_areas(ranked: Sequence[Ranking], weights: NDArray[np.number] | None = None) -> dict[str, float]:
    """Return `roc_auc` and `average_precision`, each averaged over the classes where it is defined; else NaN."""
    areas = np.array([ranking.areas(weights) for ranking in ranked])  # [C, 2]
    defined = areas[~np.isnan(areas[:, 0])]
    return dict(zip(AREAS, defined.mean(axis=0).tolist() if len(defined) else (np.nan, np.nan), strict=True))
