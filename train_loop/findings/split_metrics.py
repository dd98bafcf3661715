"""Everything that is measured of a split: counts, probabilities, intervals, each class."""

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.contract.labels import scores_from_logits
from train_loop.findings.intervals import Interval, count_intervals, row_intervals
from train_loop.findings.metrics import confusion_matrix, count_metrics, per_class
from train_loop.findings.predictions import Predictions
from train_loop.findings.score_metrics import (
    Ranking,
    Reliability,
    mean_over_defined,
    rankings,
    reliability,
    row_brier_scores,
    row_log_losses,
)


@dataclasses.dataclass(frozen=True)
class SplitMetrics:
    """The figures of one split."""

    values: dict[str, float]
    """Metric -> value; NaN where it is not defined, as a ROC AUC with one class alone."""
    intervals: dict[str, Interval]
    """Metric -> 95 % bootstrap interval. The calibration error has none: resampling inflates it."""
    per_class: dict[str, dict[str, float]]
    matrix: NDArray[np.int64]
    """Confusion matrix [C, C]: rows are true classes."""
    rankings: list[Ranking]
    """One a class, for the curves."""
    before: Reliability
    """Without the temperature."""
    after: Reliability

    def as_json(self) -> dict[str, Any]:
        """Return the content of metrics.json for the split; NaN becomes null."""
        return {
            "metrics": {name: _finite(value) for name, value in self.values.items()},
            "intervals": {name: [_finite(low), _finite(high)] for name, (low, high) in self.intervals.items()},
            "per_class": {
                label: {name: _finite(value) for name, value in values.items()}
                for label, values in self.per_class.items()
            },
            "confusion_matrix": self.matrix.tolist(),
        }


def measure(predictions: Predictions, seed: int) -> SplitMetrics:
    """Measure a split's predictions; intervals are drawn from `seed`."""
    labels, probabilities = predictions.split.labels, predictions.probabilities
    matrix = confusion_matrix(predictions.predicted, labels, len(predictions.labels))
    ranked = rankings(probabilities, labels)
    areas = np.array([ranking.areas() for ranking in ranked])  # [C, 2]
    rows = {"log_loss": row_log_losses(probabilities, labels), "brier_score": row_brier_scores(probabilities, labels)}
    uncalibrated = scores_from_logits(predictions.logits)
    before, after = reliability(uncalibrated, labels), reliability(probabilities, labels)
    values = {name: float(value) for name, value in count_metrics(matrix).items()}
    values |= {name: float(losses.mean()) for name, losses in rows.items()}
    values |= {
        "roc_auc": mean_over_defined(areas[:, 0]),
        "average_precision": mean_over_defined(areas[:, 1]),
        "expected_calibration_error": after.expected_calibration_error,
        "log_loss_uncalibrated": float(row_log_losses(uncalibrated, labels).mean()),
        "expected_calibration_error_uncalibrated": before.expected_calibration_error,
    }
    classes = per_class(matrix, predictions.labels)
    for label, (roc_auc, average_precision) in zip(predictions.labels, areas.tolist(), strict=True):
        classes[label] |= {"roc_auc": roc_auc, "average_precision": average_precision}
    intervals = count_intervals(matrix, seed) | row_intervals(rows, ranked, seed)
    return SplitMetrics(values, intervals, classes, matrix, ranked, before, after)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
