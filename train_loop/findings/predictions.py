"""The predictions of a split, one class a row: its answers, mistakes and metrics."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from serve.contract.classifier import Classifier
from serve.contract.labels import scores_from_logits
from train_loop.metrics.classes import Counts, confusion_matrix, count_metrics, per_class
from train_loop.metrics.intervals import Interval, count_intervals, row_intervals
from train_loop.metrics.probabilities import (
    Floats,
    Ranking,
    Reliability,
    log_loss,
    mean_areas,
    rankings,
    reliability,
    row_brier_scores,
    row_log_losses,
)
from train_loop.rows.split import Split

Names = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class SplitMetrics:
    """The metrics of one split."""

    values: dict[str, float]  # metric -> value; NaN if undefined, such as a ROC AUC with only one class
    intervals: dict[str, Interval]
    """Metric -> 95 % bootstrap interval. The calibration error has none: resampling inflates it."""
    per_class: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    matrix: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.int64))
    """[C, C]: rows are true classes; of several labels, in how many rows one is missing and another wrong."""
    rankings: list[Ranking] = dataclasses.field(default_factory=list)  # one per class, for the curves
    before: Reliability | None = None  # without the temperature; None for numbers
    after: Reliability | None = None

    @property
    def is_calibrated(self) -> bool:
        """Whether a temperature has changed the scores."""
        return self.values.get("log_loss") != self.values.get("log_loss_uncalibrated")

    def shown(self, metric: str) -> str:
        """Return a metric as text, with its interval if it has one."""
        low, high = self.intervals.get(metric, (math.nan, math.nan))
        return f"{self.values[metric]:.4f}" + ("" if math.isnan(low) else f" ({low:.3f} to {high:.3f})")


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The rows of a split, with the model's logits and what follows from them.

    Several labels a row and numbers are subclasses, which answer the same questions.
    """

    first: ClassVar[Names] = ("accuracy", "macro_f1", "matthews_correlation", "log_loss", "expected_calibration_error")
    """Metrics that a report begins with."""
    shown: ClassVar[Names] = ("accuracy", "macro_f1", "macro_recall", "matthews_correlation", "log_loss", "roc_auc")
    """Metrics that a terminal shows."""
    card: ClassVar[Names] = ("accuracy", "macro_f1", "macro_recall", "log_loss", "expected_calibration_error")
    """Metrics of a model card; the first three are in its front matter."""
    during: ClassVar[Names] = ("accuracy", "macro_f1")  # validation metrics that the picture of a training shows
    score_name: ClassVar = "score"
    slice_metric: ClassVar = "accuracy"  # what slices compare
    confused_as: ClassVar = "mistaken for"  # what links the labels of a confused pair

    split: Split
    classifier: Classifier
    text_columns: tuple[str, ...]  # column of the text, or of both texts of a pair
    logits: NDArray[np.float32]  # [N, C], in the split's order

    @property
    def labels(self) -> tuple[str, ...]:
        return self.classifier.labels

    @functools.cached_property
    def probabilities(self) -> Floats:
        """Calibrated by the temperature [N, C]; for numbers the answers [N, 1]."""
        return self.classifier.scores(self.logits)

    @functools.cached_property
    def predicted(self) -> NDArray[Any]:
        """Predicted class of each row [N]; which labels are given [N, C]; or the number [N]."""
        classes: NDArray[np.int64] = self.logits.argmax(axis=1)
        return classes

    @functools.cached_property
    def scores(self) -> Floats:
        """Probability of each row's predicted class [N]."""
        best: Floats = self.probabilities.max(axis=1)
        return best

    @functools.cached_property
    def is_correct(self) -> NDArray[np.bool_]:
        correct: NDArray[np.bool_] = self.predicted == self.split.labels
        return correct

    def mistakes(self) -> NDArray[np.int64]:
        """Return the rows with a wrong answer, the most confident first."""
        rows = np.flatnonzero(~self.is_correct)
        return rows[np.argsort(-self.scores[rows], kind="stable")]

    def answer(self, row: int | np.integer) -> str:
        """Return the model's answer to a row, as text."""
        return self.labels[int(self.predicted[row])]

    def truth(self, row: int | np.integer) -> str:
        """Return what is known of a row, as text."""
        return self.split.answer_of(row, self.labels)

    @property
    def _abstains(self) -> bool:
        return self.classifier.decision.abstain_below > 0.0

    @property
    def score_columns(self) -> list[str]:
        """Further columns of predictions.csv."""
        return [*(f"probability_{label}" for label in self.labels), *["abstained"] * self._abstains]

    def score_cells(self, row: int) -> list[str]:
        """Return a row's values in them."""
        cells = [f"{value:.6g}" for value in self.probabilities[row]]
        return [*cells, str(self.classifier.abstains(self.scores[row])).lower()] if self._abstains else cells

    mistake_columns: ClassVar[Names] = ("probability_of_true", "runner_up", "margin")
    """Further columns of misclassified.csv."""

    def mistake_cells(self, row: int) -> list[str]:
        probabilities = self.probabilities[row]
        best, second = np.argsort(-probabilities, kind="stable")[:2]
        own = probabilities[self.split.labels[row]]
        return [f"{own:.6g}", self.labels[second], f"{probabilities[best] - probabilities[second]:.6g}"]

    def are_confused(self, true: int, predicted: int) -> NDArray[np.bool_]:
        """Return the rows [N] of one label where another was given in its place."""
        found: NDArray[np.bool_] = (self.split.labels == true) & (self.predicted == predicted)
        return found

    def measure(self, seed: int) -> SplitMetrics:
        """Return the metrics; `seed` seeds the intervals."""
        labels, probabilities = self.split.labels, self.probabilities
        matrix = confusion_matrix(self.predicted, labels, len(self.labels))
        ranked = rankings(probabilities, labels)
        classes = per_class(Counts.of(matrix), ranked, self.labels)
        rows = {
            "log_loss": row_log_losses(probabilities, labels),
            "brier_score": row_brier_scores(probabilities, labels),
        }
        uncalibrated = scores_from_logits(self.logits)
        before, after = (reliability(each, labels) for each in (uncalibrated, probabilities))
        values = {name: float(value) for name, value in count_metrics(Counts.of(matrix)).items()}
        values |= {name: float(each.mean()) for name, each in rows.items()} | mean_areas(ranked)
        values |= {
            "expected_calibration_error": after.expected_calibration_error,
            "log_loss_uncalibrated": log_loss(uncalibrated, labels),
            "expected_calibration_error_uncalibrated": before.expected_calibration_error,
        }
        values |= self._decision_metrics()
        intervals = count_intervals(matrix, seed) | row_intervals(rows, ranked, seed)
        return SplitMetrics(values, intervals, classes, matrix, ranked, before, after)

    def classification_report(self) -> str:
        """Return scikit-learn's table of the metrics by label."""
        # Imported here: only needed at the end of a run.
        from sklearn.metrics import classification_report

        true, names = self.split.labels, self.labels
        options = {"labels": range(len(names)), "target_names": names, "digits": 4, "zero_division": 0}
        return str(classification_report(true, self.predicted, **options))

    def _decision_metrics(self) -> dict[str, float]:
        """Return how often label sets of 90 % hold the true label and their size; the share answered, its accuracy."""
        values, cut = {}, self.classifier.decision.set_cuts.get("0.9")
        if cut is not None:
            in_set = self.probabilities >= cut  # [N, C]
            values["label_set_90_coverage"] = float(in_set[np.arange(len(in_set)), self.split.labels].mean())
            values["label_set_90_size"] = float(in_set.sum(axis=1).mean())
        if self._abstains:
            is_answered = self.scores >= self.classifier.decision.abstain_below
            is_right = self.is_correct[is_answered]
            values["answered"] = float(is_answered.mean())
            values["accuracy_answered"] = float(is_right.mean()) if len(is_right) else math.nan
        return values

    def texts(self) -> Iterator[tuple[str, ...]]:
        """Yield each row's text, or pair, in order, without loading them all."""
        return self.split.texts(self.text_columns)

    def texts_of(self, rows: NDArray[np.integer]) -> list[tuple[str, ...]]:
        """Return the text, or pair, of each of some rows."""
        return self.split.texts_of(rows, self.text_columns)
