"""The predictions of a split with a number for each row."""

import functools

import numpy as np
from numpy.typing import NDArray

from train_loop.findings.predictions import Predictions, SplitMetrics
from train_loop.metrics.intervals import row_intervals
from train_loop.metrics.numbers import number_metrics
from train_loop.metrics.probabilities import Floats


class NumberPredictions(Predictions):
    """Each row has a number, and the answer is one."""

    first = card = ("spearman", "pearson", "rmse", "mae", "r2")
    shown = (*first, "interval_90_coverage", "interval_90_width")
    during = ("spearman", "r2")
    score_name = "error"
    slice_metric = "error below the median"
    mistake_columns = ("low", "high")

    @functools.cached_property
    def predicted(self) -> Floats:
        return self.probabilities[:, 0]

    @functools.cached_property
    def scores(self) -> Floats:
        """Answer - true number [N]."""
        return self.predicted - self.split.labels

    @functools.cached_property
    def is_correct(self) -> NDArray[np.bool_]:
        """Whether the error is at most that of half of the rows [N]: what slices compare."""
        correct: NDArray[np.bool_] = np.abs(self.scores) <= np.median(np.abs(self.scores))
        return correct

    def mistakes(self) -> NDArray[np.int64]:
        """Return all rows, the largest errors first."""
        return np.argsort(-np.abs(self.scores), kind="stable")

    def answer(self, row: int | np.integer) -> str:
        return f"{self.predicted[row]:.6g}"

    @property
    def score_columns(self) -> list[str]:
        return list(self.mistake_columns)

    def score_cells(self, row: int) -> list[str]:
        """Return the ends of the interval that holds 90 % of the true numbers."""
        if "0.9" not in self.classifier.decision.interval_widths:
            return ["nan", "nan"]
        return [f"{value:.6g}" for value in self.classifier.interval(float(self.predicted[row]), 0.9)]

    mistake_cells = score_cells

    def measure(self, seed: int) -> SplitMetrics:
        answers, true = self.predicted, self.split.labels
        values = number_metrics(answers, true)

        def of_resample(weights: NDArray[np.integer]) -> dict[str, float]:
            drawn = np.repeat(np.arange(len(true)), weights)
            found = number_metrics(answers[drawn], true[drawn])
            return {name: value for name, value in found.items() if name not in rows}

        rows = {"mae": np.abs(self.scores), "mse": self.scores**2}
        if "0.9" in self.classifier.decision.interval_widths:
            widths = self.classifier.half_widths(answers, 0.9)
            rows["interval_90_coverage"] = (np.abs(self.scores) <= widths).astype(np.float64)
            values["interval_90_coverage"] = float(rows["interval_90_coverage"].mean())
            values["interval_90_width"] = 2.0 * float(widths.mean())
        return SplitMetrics(values, row_intervals(rows, [], seed, of_resample))

    def classification_report(self) -> str:
        """Return the metrics, as there are no classes."""
        found = number_metrics(self.predicted, self.split.labels)
        return "".join(f"{name:>10} {value:10.4f}\n" for name, value in found.items())
