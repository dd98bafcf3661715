"""The predictions of a split with any number of labels a row."""

import functools

import numpy as np
from numpy.typing import NDArray

from serve.contract.labels import scores_from_logits
from train_loop.findings.predictions import Predictions, SplitMetrics
from train_loop.metrics.classes import Counts, per_class
from train_loop.metrics.intervals import row_intervals
from train_loop.metrics.label_sets import averages, resampled_averages, row_log_losses, row_metrics, summary
from train_loop.metrics.probabilities import Floats, binned, rankings
from train_loop.rows.split import listed


class LabelSetPredictions(Predictions):
    """Each label is given or not, by its own score."""

    first = ("macro_f1", "micro_f1", "subset_accuracy", "average_precision", "expected_calibration_error")
    shown = (
        *("macro_f1", "macro_f1_at_half", "micro_f1", "micro_f1_at_half", "subset_accuracy", "hamming_loss"),
        *("average_precision", "label_ranking_average_precision"),
    )
    card = ("macro_f1", "micro_f1", "average_precision", "log_loss", "expected_calibration_error")
    during = ("micro_f1", "macro_f1")
    slice_metric = "all labels right"
    confused_as = "without it, but with"
    mistake_columns = ("missing", "wrong")

    @functools.cached_property
    def predicted(self) -> NDArray[np.bool_]:
        return self.classifier.decisions(self.probabilities)

    @functools.cached_property
    def scores(self) -> Floats:
        """Probability of each row's answer, if labels came independently [N]."""
        p_of_answer = np.where(self.predicted, self.probabilities, 1.0 - self.probabilities)
        product: Floats = np.exp(np.log(np.maximum(p_of_answer, np.finfo(np.float64).tiny)).sum(axis=1))
        return product

    @functools.cached_property
    def is_correct(self) -> NDArray[np.bool_]:
        """Whether exactly the true labels are given, by row [N]."""
        correct: NDArray[np.bool_] = (self.predicted == self.split.labels).all(axis=1)
        return correct

    def answer(self, row: int | np.integer) -> str:
        return listed(self.predicted[row], self.labels)

    def mistake_cells(self, row: int) -> list[str]:
        """Return the labels that are missing, and those that are wrong."""
        true, given = self.split.labels[row], self.predicted[row]
        return [listed(labels, self.labels) for labels in (true & ~given, given & ~true)]

    def are_confused(self, true: int, predicted: int) -> NDArray[np.bool_]:
        missing, wrong = self._missing_and_wrong()
        return missing[:, true] & wrong[:, predicted]

    def measure(self, seed: int) -> SplitMetrics:
        scores, given, true = self.probabilities, self.predicted, self.split.labels
        uncalibrated = scores_from_logits(self.logits, problem_type=self.classifier.problem_type)
        counts, rows, ranked = Counts.of_sets(given, true), row_metrics(scores, given, true), rankings(scores, true)
        before, after = (binned(each.ravel(), true.ravel()) for each in (uncalibrated, scores))
        halved = averages(Counts.of_sets(scores >= 0.5, true))
        values = summary(counts, rows, ranked) | {
            "macro_f1_at_half": halved["macro_f1"],
            "micro_f1_at_half": halved["micro_f1"],
            "expected_calibration_error": after.expected_calibration_error,
            "log_loss_uncalibrated": float(row_log_losses(uncalibrated, true).mean()),
            "expected_calibration_error_uncalibrated": before.expected_calibration_error,
        }
        thresholds = self.classifier.thresholds.tolist()
        found = per_class(counts, ranked, self.labels).items()
        classes = {label: each | {"threshold": cut} for (label, each), cut in zip(found, thresholds, strict=True)}
        intervals = row_intervals(rows, ranked, seed, resampled_averages(given, true))
        return SplitMetrics(values, intervals, classes, self._confusion(), ranked, before, after)

    def _confusion(self) -> NDArray[np.int64]:
        """Return in how many rows label r is missing and label p wrong [C, C]; on the diagonal, r is right."""
        from scipy.sparse import csr_array  # numpy multiplies whole numbers slowly, and mistakes are few

        missing, wrong = (csr_array(each.astype(np.int64)) for each in self._missing_and_wrong())
        matrix: NDArray[np.int64] = (missing.T @ wrong).toarray()
        np.fill_diagonal(matrix, (self.predicted & self.split.labels).sum(axis=0))
        return matrix

    def _missing_and_wrong(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return self.split.labels & ~self.predicted, self.predicted & ~self.split.labels
