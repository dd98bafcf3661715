"""Metrics of probabilities: log loss, Brier, calibration error, ROC AUC, average precision, their curves.

Probabilities are [N, C] float64, labels [N] class numbers. Definitions are scikit-learn's, the oracle of
the tests. Rank metrics are one-vs-rest; they are NaN for a class without a row of its own or of others.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NUM_BINS = 15
"""Bins of the reliability diagram, as in Guo et al. 2017."""


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
    """Rows by the score of their predicted label, in equal bins from 0 to 1; arrays are [NUM_BINS]."""

    num_rows: NDArray[np.int64]
    scores: Floats
    """Mean score of each bin; NaN where it is empty."""
    accuracies: Floats
    """Share of right rows in each bin; NaN where it is empty."""

    @property
    def expected_calibration_error(self) -> float:
        """Return the mean |accuracy - score| over rows (Naeini et al. 2015)."""
        filled = self.num_rows > 0
        gaps = np.abs(self.accuracies - self.scores)[filled]
        return float((gaps * self.num_rows[filled]).sum() / self.num_rows.sum())


def reliability(probabilities: Floats, labels: NDArray[np.int64]) -> Reliability:
    """Return how often predictions of a score are right."""
    scores = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    bins = np.minimum((scores * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    num_rows = np.bincount(bins, minlength=NUM_BINS)
    safe = np.where(num_rows > 0, num_rows, np.nan)
    return Reliability(
        num_rows,
        np.bincount(bins, weights=scores, minlength=NUM_BINS) / safe,
        np.bincount(bins, weights=right, minlength=NUM_BINS) / safe,
    )


class Ranking:
    """Rows in order of one class's probability, sorted once; then curves and areas under any row weights.

    Args:
        scores: the class's probability of each row [N].
        is_class: whether the row is of the class [N].
    """

    def __init__(self, scores: Floats, is_class: NDArray[np.bool_]) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        self._ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # last row of each distinct score
        self._is_class = is_class[self._order].astype(np.float64)

    def counts(self, weights: NDArray[np.number] | None = None) -> tuple[Floats, Floats]:
        """Return true and false positives at each distinct score, from the highest down: [K] each."""
        hits = self._is_class if weights is None else self._is_class * weights[self._order]
        total = np.arange(1.0, len(hits) + 1) if weights is None else np.cumsum(weights[self._order], dtype=np.float64)
        true = np.cumsum(hits)
        return true[self._ends], (total - true)[self._ends]

    def areas(self, weights: NDArray[np.number] | None = None) -> tuple[float, float]:
        """Return ROC AUC and average precision."""
        true, false = self.counts(weights)
        positives, negatives = true[-1], false[-1]
        if positives <= 0 or negatives <= 0:
            return float("nan"), float("nan")
        heights = true - np.diff(true, prepend=0.0) / 2.0  # of the trapezoids between neighbouring scores
        roc_auc = (heights * np.diff(false, prepend=0.0)).sum() / (positives * negatives)
        found = np.maximum(true + false, 1e-300)
        average_precision = (np.diff(true, prepend=0.0) * (true / found)).sum() / positives
        return float(roc_auc), float(average_precision)


def rankings(probabilities: Floats, labels: NDArray[np.int64]) -> list[Ranking]:
    """Return one ranking a class."""
    return [Ranking(probabilities[:, index], labels == index) for index in range(probabilities.shape[1])]


def mean_over_defined(values: NDArray[np.float64]) -> float:
    """Return the mean of what is not NaN; NaN where nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
